"""What learned bounds are worth: a trained network under Q15.16 bit flips, every variant on the same faults.

    python tools/measure_fitact.py resnet20 --data DIR
    python tools/measure_fitact.py alexnet --data DIR

DIR holds `models/<name>-cifar10.safetensors` and `data/cifar10.npz`. Bounds are calibrated and learned on
training images, everything reported is on test images. Weights, biases, BatchNorm parameters and the
bounds themselves are fault targets. Writes tools/results/fitact_<name>.md and .json.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fitact_fx
from fitact_fx import run_campaign
from fitact_fx.campaigns import CampaignResult
from fitact_fx.faults import BitFlip
from fitact_fx.models import alexnet_cifar, load_cifar10, load_weights, resnet20
from fitact_fx.schemes.fitact import FitAct

NETWORKS = {"resnet20": resnet20, "alexnet": alexnet_cifar}
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
CELLS = tuple(f"{rate:g}" for rate in RATES)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Harden, measure, write the page."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = NETWORKS[options.network]()
    load_weights(model, options.data / "models" / f"{options.network}-cifar10.safetensors")
    cifar = load_cifar10(options.data / "data" / "cifar10.npz")
    train = _in_batches(cifar.train(options.train_images), 128)
    variants, notes = _variants(model, train, options.seed)
    asked = {"format": "q15.16", "seed": options.seed + 1000, "threads": options.threads}
    # Every campaign runs its variants without faults first, and one at rate 0 has no more to do.
    whole = run_campaign(variants, cifar.test(), BitFlip, [0], trials=1, suffixes=False, **asked)
    clean = {name: told["clean"]["accuracy"] for name, told in whole.settings["variants"].items()}
    found = run_campaign(variants, cifar.test(options.images), BitFlip, RATES, trials=options.trials, **asked)
    page = _page(options, clean, found, notes)
    print(page)
    (RESULTS / f"fitact_{options.network}.md").write_text(page)
    (RESULTS / f"fitact_{options.network}.json").write_text(
        json.dumps(
            _data(options, clean, found),
        )
        + "\n"
    )


def _variants(model: nn.Module, train: list[object], seed: int) -> tuple[dict[str, nn.Module], list[str]]:
    clamp = fitact_fx.harden(model, scheme="ranger", data=train)
    calibrated = fitact_fx.harden(model, granularity="neuron")
    fitact_fx.calibrate(calibrated, train)
    learned = fitact_fx.harden(model, scheme=FitAct())
    fitact_fx.calibrate(learned, train)
    started = time.perf_counter()
    record = fitact_fx.post_train(learned, train, max_drop=0.005, seed=seed)
    notes = [f"Learning: {record}; followed {record.kept:.0%} of the way; {time.perf_counter() - started:.0f} s."]
    return {"none": model, "layer, clamp": clamp, "neuron, calibrated": calibrated, "FitAct, learned": learned}, notes


def _in_batches(data: tuple[Tensor, Tensor], size: int) -> list[object]:
    return list(zip(*(part.split(size) for part in data), strict=True))


def _page(options: argparse.Namespace, clean: dict[str, float], found: CampaignResult, notes: list[str]) -> str:
    def mean(name: str, cell: str) -> str:
        interval = found.interval(name, cell)
        return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    rows = [[name, f"{100 * clean[name]:.2f}", *(mean(name, cell) for cell in CELLS)] for name in clean]
    worst = [[name, *(f"{100 * found.worst(name, cell):.1f}" for cell in CELLS)] for name in clean]
    pairs = [
        ("FitAct, learned", "neuron, calibrated"),
        ("FitAct, learned", "layer, clamp"),
        ("neuron, calibrated", "layer, clamp"),
    ]
    differences = [[f"{a} minus {b}", *(_difference(found, a, b, cell) for cell in CELLS)] for a, b in pairs]
    command = (
        f"`python tools/measure_fitact.py {options.network} --data DIR --trials {options.trials} "
        f"--images {options.images} --train-images {options.train_images} --seed {options.seed}`"
    )
    conditions = (
        f"Q15.16 bit flips over parameters and bounds; {options.trials} draws a rate, the same for every variant; "
        f"{options.images} test images a draw; clean accuracy on all 10,000. Accuracy in %, with the 95 % bootstrap "
        f"interval of the mean over draws. Bounds from {options.train_images} training images. "
        f"torch {torch.__version__}, {platform.machine()}."
    )
    parts = [
        f"# FitAct on {options.network}, CIFAR-10",
        command,
        conditions,
        tabulate(rows, ["variant", "clean", *CELLS], tablefmt="github"),
        "Worst draw:",
        tabulate(worst, ["variant", *CELLS], tablefmt="github"),
        "Paired differences on the same draws, in points:",
        tabulate(differences, ["difference", *CELLS], tablefmt="github"),
        *notes,
    ]
    return "\n\n".join(parts) + "\n"


def _difference(found: CampaignResult, a: str, b: str, cell: str) -> str:
    interval = found.difference(a, b, cell)
    return f"{100 * interval.mean:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def _data(options: argparse.Namespace, clean: dict[str, float], found: CampaignResult) -> dict[str, object]:
    draws = [
        {"variant": name, "rate": rate, "accuracies": found.values(name, cell).tolist()}
        for name in clean
        for rate, cell in zip(RATES, CELLS, strict=True)
    ]
    asked = {name: value for name, value in vars(options).items() if name != "data"}
    return {"options": asked, "clean": clean, "draws": draws}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--train-images", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
