"""Smaller questions about protections, each answered on one network with every variant on the same faults.

    python tools/study.py data --data DIR            how few unlabelled images suffice
    python tools/study.py guard --data DIR           limits per channel and per tensor, beside bounds and alone
    python tools/study.py activations --data DIR     faults in values and not in memory
    python tools/study.py beyond --data DIR          logits, drawn faults, corrections: past the paper
    python tools/study.py storage --data DIR         bounds in 32, 16 and 8 bits
    python tools/study.py policies --data DIR        what happens beyond the bound
    python tools/study.py search --data DIR          what more of a search finds for Clip-Act
    python tools/study.py transformer --data DIR --weights vit-cifar10.safetensors

DIR and `--store` as in tools/paper.py: protections that were made for the paper's experiment are taken from there.
Bounds come from training images, every figure from test images. Writes
tools/results/study_<name>.md and .json; another format than Q15.16 stands behind the name.
"""

import argparse
import json
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from fitact_fx import run_campaign
from fitact_fx.campaigns import CampaignResult
from fitact_fx.faults import BitFlip
from fitact_fx.models import load_cifar10

STUDIES = ("data", "guard", "activations", "beyond", "storage", "policies", "search", "transformer")
RESULTS = Path(__file__).parent / "results"
BATCH = 250


def main() -> None:
    """Make the variants, run the campaign, write the page."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.store.mkdir(parents=True, exist_ok=True)
    study: Any = import_module(f"study_{options.study}")
    cifar = load_cifar10(options.data / "data" / "cifar10.npz")
    variants, notes = study.variants(options, cifar)
    asked = {"format": options.format, "seed": options.seed, "threads": options.threads}
    whole = run_campaign(variants, _split(cifar.test()), BitFlip, [0], trials=1, suffixes=False, **asked)
    hit = getattr(study, "ASKED", {})  # parameters, bounds and limits, unless it says otherwise
    found = run_campaign(
        variants, _split(cifar.test(options.images)), BitFlip, study.RATES, trials=options.trials, **asked, **hit
    )
    page = _page(options, study, whole, found, notes)
    print(page)
    name = f"study_{options.study}" + ("" if options.format == "q15.16" else f"_{options.format}")
    (RESULTS / f"{name}.md").write_text(page, "utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(_draws(whole, found)) + "\n", "utf-8")


def _split(data: tuple[torch.Tensor, torch.Tensor]) -> list[Any]:
    return list(zip(*(part.split(BATCH) for part in data), strict=True))


def _page(
    options: argparse.Namespace, study: Any, whole: CampaignResult, found: CampaignResult, notes: list[str]
) -> str:
    cells = [one.name for one in found.conditions]
    first = study.REFERENCE
    told = whole.settings["variants"]
    rows = []
    for name in found.variants:
        about = found.settings["variants"][name]
        differences = ["" if name == first else _points(found.difference(name, first, cell)) for cell in cells]
        means = [f"{100 * found.interval(name, cell).mean:.1f}" for cell in cells]
        pairs = [f"{each[0]} ({each[1]})" if each[1] else each[0] for each in zip(means, differences, strict=True)]
        size = about["bound_bytes"] + about["guard_bytes"]
        clean = [f"{100 * each['clean']['accuracy']:.2f}" for each in (told[name], about)]
        rows.append([name, *clean, *pairs, f"{size:,}"])
    command = (
        f"`python tools/study.py {options.study} --data DIR --trials {options.trials} --images {options.images} "
        f"--format {options.format} --seed {options.seed}{' --weights FILE' if options.weights else ''}`"
    )
    conditions = (
        f"{options.format} bit flips over {' and '.join(found.settings['targets'])}; {options.trials} draws a rate, "
        f"the same for every variant; {options.images} test images a draw; clean accuracy on all 10,000. Accuracy "
        f"in %, and in parentheses the paired difference from {first!r} with its 95 % interval. "
        f"torch {torch.__version__}, {platform.machine()}."
    )
    table = tabulate(
        rows, ["variant", "clean", "clean, these images", *cells, "bytes"], tablefmt="github", disable_numparse=True
    )
    return "\n\n".join([f"# {study.TITLE}", command, conditions, table, *notes]) + "\n"


def _points(interval: Any) -> str:
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _draws(whole: CampaignResult, found: CampaignResult) -> dict[str, Any]:
    clean = {name: told["clean"]["accuracy"] for name, told in whole.settings["variants"].items()}
    draws = {
        name: {one.name: [round(float(value), 6) for value in found.values(name, one.name)] for one in found.conditions}
        for name in found.variants
    }
    return {"clean": clean, "draws": draws}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path(".paper"), help="where protections are kept")
    parser.add_argument("--weights", type=Path, help="of the transformer; tools/train_cifar10.py vit makes them")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--format", default="q15.16")
    parser.add_argument("--seed", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
