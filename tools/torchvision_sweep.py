"""Every torchvision classification model, hardened three ways: is it still itself, and do its bounds hold?

    python tools/torchvision_sweep.py                     # all of them, the table into tools/results/
    python tools/torchvision_sweep.py --models 'resnet*'  # some of them, the table on the screen

For each model (random weights, evaluation mode) and each granularity:

1. bounds not set, and bounds set to infinity: the outputs are the model's own, bit for bit;
2. calibrated on two batches, then every parameter of a copy scaled by 1e4: every value behind a bound
   is inside the widened bound or the policy's replacement (0), and none is NaN.

The second check computes the widened bound itself and shares no code with the policies.
"""

import argparse
import copy
import gc
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import fitact_fx
from fitact_fx.bounded import Bounded, bounded_sites

GRANULARITIES = ("neuron", "channel", "layer")
WEIGHT_SCALE = 1e4
RESULTS = Path(__file__).parent / "results" / "torchvision_sweep.md"

OWN_SIZE = {"vit_*": 224, "maxvit_*": 224, "swin_*": 224, "inception_v3": 96}
"""Models that need more than SMALL pixels: a fixed number of patches, or too many poolings."""
SMALL = 64

WITHOUT_SLOW_START = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
"""Options that leave out an initialisation of minutes."""

# The bias of shifted windows is looked up by an index tensor, behind which the channel's place is not known.
CHANNEL_RULES = {"swin_v2_*": {"*": "channel", "*.attn.sigmoid": "layer"}}
"""Where `harden(model, "channel")` refuses a site by name, what it is told instead."""

EXCEPTIONS = {
    "swin_v2_*": (
        "at channel granularity `calibrate` refuses the sites `*.attn.sigmoid` by name (the relative position bias is "
        "looked up by an index tensor, behind which the place of its channels is not known), so the rule is here "
        '`{"*": "channel", "*.attn.sigmoid": "layer"}`'
    ),
}

NOTES = {
    "googlenet": "evaluation graph: its auxiliary heads exist in training only",
    "inception_v3": "evaluation graph: its auxiliary head exists in training only; 75 pixels are its least",
}


@dataclass
class Result:
    """What one model showed; `exceptions` says in words what went otherwise than promised."""

    model: str
    size: int
    parameters: int
    sites: int = 0
    bounds: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    same_unset: int = 0
    same_infinite: int = 0
    contained: int = 0
    replaced: float = 0.0
    exceptions: list[str] = field(default_factory=list)

    @property
    def as_promised(self) -> bool:
        """Every check held at every granularity."""
        return not self.exceptions and self.same_unset == self.same_infinite == self.contained == len(GRANULARITIES)


def image_size(name: str) -> int:
    """The smallest image, in pixels, that the model takes (or that is still quick)."""
    return matching(OWN_SIZE, name) or SMALL


def matching(by_pattern: dict[str, Any], name: str) -> Any:
    """The entry of the first glob that matches the name, or None."""
    return next((value for pattern, value in by_pattern.items() if fnmatchcase(name, pattern)), None)


def build(name: str) -> nn.Module:
    """The model with random weights, always the same ones, in evaluation mode."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **WITHOUT_SLOW_START.get(name, {}))
    return model.eval()


def sweep(name: str, model: nn.Module, size: int) -> Result:
    """All checks on one model, with images of `size` pixels."""
    result = Result(name, size, sum(parameter.numel() for parameter in model.parameters()))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images)
        for granularity in GRANULARITIES:
            try:
                _check(model, granularity, images, expected, result)
            except fitact_fx.FitactError as error:
                result.exceptions.append(f"{granularity}: " + " ".join(str(error).split()))
            gc.collect()
    return result


def _check(model: nn.Module, granularity: str, images: Tensor, expected: Tensor, result: Result) -> None:
    started = time.perf_counter()
    rule = matching(CHANNEL_RULES, result.model) if granularity == "channel" else None
    hard = fitact_fx.harden(model, granularity=rule or granularity)
    result.seconds[granularity] = time.perf_counter() - started
    result.sites = len(bounded_sites(hard))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fitact_fx.UncalibratedWarning)
        same = same_bits(expected, hard(images))
    result.same_unset += same
    if not same:
        result.exceptions.append(f"{granularity}: with bounds not set, {fitact_fx.verify(model, hard, images)}")

    fitact_fx.set_bounds(hard, {"*": (-torch.inf, torch.inf)})
    same = same_bits(expected, hard(images))
    result.same_infinite += same
    if not same:
        result.exceptions.append(f"{granularity}: with infinite bounds, {fitact_fx.verify(model, hard, images)}")

    fitact_fx.calibrate(hard, [images, images[:1].flip(-1)])
    result.bounds[granularity] = sum(
        b.numel() for pair in fitact_fx.bounds(hard).values() for b in pair if b is not None
    )
    outside, replaced = beyond_bounds_when_scaled(hard, images)
    result.contained += not outside
    result.replaced = max(result.replaced, replaced)
    result.exceptions += [f"{granularity}: {sentence}" for sentence in outside]


def same_bits(expected: Tensor, got: Tensor) -> bool:
    """Equal to the last bit, the sign of a zero and the kind of a NaN included."""
    return torch.equal(expected.contiguous().view(torch.int32), got.contiguous().view(torch.int32))


def beyond_bounds_when_scaled(hard: nn.Module, images: Tensor) -> tuple[list[str], float]:
    """Run a copy with every parameter scaled; what is wrong behind a bound, and the share of values replaced."""
    faulty = copy.deepcopy(hard)
    for parameter in faulty.parameters():
        parameter.mul_(WEIGHT_SCALE)
    wrong: list[str] = []
    counts = {"values": 0, "replaced": 0}

    def inspect(bounded: Bounded, args: tuple[Tensor, ...], output: Tensor) -> None:
        low, high = widened_bounds(bounded)
        inside = (output.double() >= low) & (output.double() <= high)
        bad = ~(inside | (output == 0))
        if bad.any():
            wrong.append(f"{bounded.site}: {int(bad.sum())} values beyond the bound, e.g. {output[bad][0].item()}")
        counts["values"] += output.numel()
        counts["replaced"] += int((output != args[0]).sum())

    for bounded in bounded_sites(faulty).values():
        bounded.register_forward_hook(inspect)
    faulty(images)
    return wrong, counts["replaced"] / max(counts["values"], 1)


def widened_bounds(bounded: Bounded) -> tuple[Tensor, Tensor]:
    """The bounds with the documented slack of float32, 2^-10 of (|bound| + a quarter of the site's scale), in float64.

    One float32 rounding step is added, because the library computes this sum in float32.
    """
    sides = [side.double() for side in (bounded.lower, bounded.upper) if side is not None]
    scale = max(float(side.abs().max()) for side in sides)

    def room(side: Tensor) -> Tensor:
        return (side.abs() + 0.25 * scale) * 2.0**-10 + (side.abs() + scale) * 2.0**-22

    assert bounded.upper is not None
    upper = bounded.upper.double()
    if bounded.lower is None:
        return torch.tensor(bounded.minimum, dtype=torch.float64), upper + room(upper)
    lower = bounded.lower.double()
    return lower - room(lower), upper + room(upper)


def table(results: list[Result]) -> str:
    """The Markdown table, one row per model."""
    rows = [
        {
            "model": each.model,
            "pixels": each.size,
            "parameters": f"{each.parameters / 1e6:.1f} M",
            "sites": each.sites,
            **{f"{kind} bounds": f"{each.bounds[kind]:,}" if kind in each.bounds else "-" for kind in GRANULARITIES},
            "harden [s]": f"{max(each.seconds.values(), default=0.0):.1f}",
            "unset: same bits": f"{each.same_unset}/3",
            "infinite: same bits": f"{each.same_infinite}/3",
            "weights x 1e4: held": f"{each.contained}/3",
            "values replaced": f"{each.replaced:.0%}",
        }
        for each in results
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True, stralign="right")


def report(results: list[Result], command: str) -> str:
    """The whole page: how it was made, the table, and a sentence for everything that is out of the ordinary."""
    names = [each.model for each in results]
    promised = sum(each.as_promised for each in results)
    excepted = sum(matching(EXCEPTIONS, name) is not None for name in names)
    exceptions = _about(EXCEPTIONS, names)
    exceptions += [f"- `{each.model}`, {sentence}" for each in results for sentence in each.exceptions]
    notes = _about(NOTES, names)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    summary = (
        f"{promised} of {len(results)} models did everything that `tools/torchvision_sweep.py` asks of them"
        f"{f', {excepted} of them only under the rule given below at Exceptions' if excepted else ''}. "
        "A count such as 3/3 is over the granularities neuron, channel and layer; `harden [s]` is the longest of the "
        "three, `values replaced` the largest share of bounded values that the scaled weights pushed beyond a bound "
        "or made NaN."
    )
    parts = [
        "# All torchvision classification models, hardened at three granularities",
        f"`{command}`, one thread; {versions}.",
        summary,
        table(results),
        "## Exceptions\n\n" + ("\n".join(exceptions) or "None."),
    ]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _about(remarks: dict[str, str], names: list[str]) -> list[str]:
    """The remarks that concern one of these models."""
    return [f"- `{glob}`: {text}." for glob, text in remarks.items() if any(fnmatchcase(n, glob) for n in names)]


def _chosen(patterns: list[str]) -> list[str]:
    names = torchvision.models.list_models(module=torchvision.models)
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        sys.exit(f"no torchvision classification model matches {' '.join(patterns)}")
    return chosen


def _results(names: list[str]) -> Iterator[Result]:
    for name in (bar := tqdm(names, unit="model")):
        bar.set_postfix_str(name)
        try:
            result = sweep(name, build(name), image_size(name))
        except Exception as error:  # noqa: BLE001  one model's crash is a row of the table, not the end of the sweep
            first = " ".join(str(error).split())
            result = Result(name, image_size(name), 0, exceptions=[f"crashed: {type(error).__name__}: {first}"])
        tqdm.write(f"{name}: {'ok' if result.as_promised else '; '.join(result.exceptions) or 'not as promised'}")
        yield result
        gc.collect()


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; exit status 1 if a model did not do what is promised."""
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB", help="only the models of these names")
    parser.add_argument("--output", type=Path, help=f"where the table goes (all models: {RESULTS.name})")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = _chosen(options.models)
    results = list(_results(names))
    everything = options.models == ["*"]
    command = "python tools/torchvision_sweep.py" + ("" if everything else f" --models {' '.join(options.models)}")
    page = report(results, command)
    output = options.output or (RESULTS if everything else None)
    if output is None:
        print(page)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    return 0 if all(each.as_promised for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
