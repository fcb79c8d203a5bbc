"""What a campaign costs: beyond its forwards, with suffixes, beside other tools, and with two workers.

    pip install -e .[bench,distributed]
    python tools/measure_campaigns.py --data DIR --json tools/results/campaigns.json --out tools/results/campaigns.md

DIR holds `models/<name>-cifar10.safetensors` and `data/cifar10.npz`. One thread everywhere, the sides of a ratio taking
turns in one run. `--parts` chooses some of overhead, suffixes, peers, workers; the others stay in the JSON file as
they are, and on the page. `--quick` is a look at whether everything works: its figures mean nothing.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import campaign_answers
import campaign_overhead
import campaign_suffixes
import campaign_workers
import torch
from campaign_page import page
from campaign_sides import Plan, about, cold_compiler, written

PARTS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "overhead": campaign_overhead.measure,
    "suffixes": campaign_suffixes.measure,
    "peers": campaign_answers.measure,
    "workers": campaign_workers.measure,
}


def main() -> None:
    """Measure the parts, write the page."""
    options = _options()
    torch.set_num_threads(1)
    plan, found = Plan(options.data, options.quick, options.limit), {}
    # The others' tools come last: importing PyTorchFI changes how the whole process logs, and dask then cannot.
    for name in sorted(options.parts, key=lambda part: part == "peers"):
        start = perf_counter()
        with cold_compiler():
            part = PARTS[name](plan)
        found[name] = {**about(), "quick": plan.quick, "seconds": round(perf_counter() - start), **part}
        if options.json is not None:
            written(options.json, {name: found[name]})
    if options.json is not None:
        found = written(options.json, {})
    text = page({name: found[name] for name in PARTS if name in found})
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="trained networks and CIFAR-10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure; parts that are not measured stay")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="where the page goes (else: the screen)")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help="some of them, with commas between")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a run to the end may take (default 180)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether it works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
