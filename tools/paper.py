"""The paper's experiment: each network under bit flips, every protection on the same faults.

    python tools/paper.py --data DIR                     the CPU grid, about two hours on one core
    python tools/paper.py --data DIR --grid full         every variant and rate, all images; for a GPU
    python tools/paper.py --data DIR --networks resnet20 --page-only

DIR holds `models/<network>-cifar10.safetensors` and `data/cifar10.npz`. What is done stays in `--store`: protections
(paper_variants.py), campaigns, times (paper_costs.py); the same command goes on where it stopped. Bounds are
calibrated, searched and learned on training images; every figure is on test images. Parameters, bounds and the
guard's limits are fault targets. Writes docs/paper.md with its figures, and
tools/results/paper_<network>_<format>.json, from which the page keeps what is not measured anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paper_costs import costs
from paper_networks import NETWORKS
from paper_page import write_page
from paper_variants import Data, made

from fitact_fx import run_campaign
from fitact_fx.faults import BitFlip
from fitact_fx.models import load_cifar10

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
BATCH = 250
VARIANTS = ("none", "Ranger", "Clip-Act", "neuron maxima", "FitAct", "guard", "FitAct + guard")
GRIDS: dict[str, dict[str, Any]] = {
    "cpu": {"rates": RATES, "formats": ("q15.16",), "images": 500, "trials": 30, "until": None, "variants": VARIANTS},
    "full": {
        "rates": (1e-7, 3e-7, *RATES),
        "formats": ("q15.16", "float32"),
        "images": None,
        "trials": 200,
        "until": 0.02,
        "variants": (*VARIANTS, "FitAct (channel)", "FitAct (layer)", "ProAct"),
    },
}


def main() -> None:
    """Measure what is missing, then write the page."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.store.mkdir(parents=True, exist_ok=True)
    if not options.page_only:
        for network in options.networks:
            _measure(network, options)
    write_page(options.store, options.networks, GRIDS[options.grid]["formats"], PAGE)


def _measure(network: str, options: argparse.Namespace) -> None:
    """Protections, clean accuracy, one campaign for each format, times: each kept as soon as it is there."""
    grid = GRIDS[options.grid]
    cifar = load_cifar10(options.data / "data" / "cifar10.npz")
    model = NETWORKS[network].load(options.data).to(options.device)
    data = Data.of(cifar, options.device)
    variants = {name: made(name, model, data, options.store, network) for name in grid["variants"]}
    asked = {"seed": options.seed, "threads": options.threads, "workers": options.workers}
    test = cifar.test(grid["images"])
    batches = [tuple(part.to(options.device) for part in pair) for pair in _split(test)]
    # Every campaign runs its variants without faults first, and one at rate 0 has no more to do.
    whole = [tuple(part.to(options.device) for part in pair) for pair in _split(cifar.test())]
    run_campaign(
        variants, whole, BitFlip, [0], trials=1, suffixes=False, store=options.store / f"{network}-clean.db", **asked
    )
    for stored in grid["formats"]:
        run_campaign(
            variants,
            batches,
            BitFlip,
            sorted({*NETWORKS[network].lower, *grid["rates"]}),
            format=stored,
            trials=options.trials or grid["trials"],
            until=grid["until"],
            store=options.store / f"{network}-{stored}.db",
            **asked,
        )
    kept = options.store / f"{network}-costs.json"
    if options.costs and not kept.exists():
        kept.write_text(json.dumps(costs(variants, test[0][:128].to(options.device), options.threads)))


def _split(data: tuple[torch.Tensor, torch.Tensor]) -> Any:
    return zip(*(part.split(BATCH) for part in data), strict=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path(".paper"), help="where all that is done is kept")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--grid", choices=GRIDS, default="cpu")
    parser.add_argument("--trials", type=int, help="draws a rate (the grid's own)")
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes of the campaigns, of so many threads each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-costs", dest="costs", action="store_false", help="leave the times out")
    parser.add_argument("--page-only", action="store_true", help="write the page of what there is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
