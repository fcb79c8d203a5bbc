"""`fitact-fx plan ...`: what its words mean, and what it prints."""

import argparse
import json
import shutil
from textwrap import fill
from typing import Any

from fitact_fx.campaigns.planning import Plan, plan
from fitact_fx.errors import CampaignError
from fitact_fx.model_spec import load_model
from fitact_fx.statistics import draws_needed

ABOUT = """\
Says how many faults a campaign has to inject before its numbers mean something. Nothing runs: it needs no
weights and no data.

A single fault does harm or does not. To know which share of them does, faults are drawn at random from all
places (every bit of every number that is targeted), and how many depends on three things:

  --margin      how far the share may be from the truth: 0.01 is one point
  --confidence  how often that promise has to hold: 0.95 is 19 times in 20
  --share       the share that is expected. The nearer to one half, the more faults it takes, so 0.5 is right for
                any; say 0.02 only if you know that it is no more

by n = N / (1 + e^2 (N - 1) / (t^2 p (1 - p))) of Leveugle et al., DATE 2009. The size of the memory, N,
hardly matters once it is large: 9,604 faults give +-1 point at 95 % for a network of any size. What they do
not give is the same for each of its parts. A claim about every tensor or every bit needs that many faults
in each one: --per tensor, --per bit.

A campaign at a bit error rate is another matter: there a draw is a whole list of faults, and the question
is how much the accuracy scatters from draw to draw. Measure that on a few, and give its standard deviation
as --spread.
"""
EXAMPLES = """\
examples:
  fitact-fx plan torchvision:resnet18                                    one number for the whole network
  fitact-fx plan torchvision:resnet18 --per tensor --margin 0.05         coarser, and for every tensor
  fitact-fx plan torchvision:resnet18 --per bit --format float32 --bits exponent --seconds-per-trial 0.2
  fitact-fx plan torchvision:resnet18 --target "parameters:layer1.*" --target parameters:fc.weight
  fitact-fx plan torchvision:resnet18 --spread 0.2                       and the draws for each bit error rate

Exit status: 0; 2 an error, told on stderr.
"""
PER = ("network", "tensor", "bit")


def add_plan(commands: Any, shape: dict[str, Any]) -> argparse.ArgumentParser:
    """`plan`; `shape` is what every parser is made with."""
    command: argparse.ArgumentParser = commands.add_parser(
        "plan", help="how many faults a campaign has to inject", description=ABOUT, epilog=EXAMPLES, **shape
    )
    command.add_argument(
        "spec", metavar="SPEC", help="torchvision:NAME, or package.module:factory (called without arguments)"
    )
    command.add_argument(
        "--per", choices=PER, default=PER[0], help="what a claim is made about, each (default: network)"
    )
    command.add_argument("--margin", type=float, default=0.01, metavar="E", help="between 0 and 1 (default: 0.01)")
    command.add_argument("--confidence", type=float, default=0.95, metavar="C", help="default: 0.95")
    command.add_argument("--share", type=float, default=0.5, metavar="P", help="the share expected (default: 0.5)")
    command.add_argument("--format", default="q15.16", metavar="NAME", help="how numbers are stored (default: q15.16)")
    command.add_argument(
        "--target",
        action="append",
        metavar="KIND[:GLOB]",
        help="what is hit, such as parameters:conv* or buffers; once per kind or glob (default: parameters)",
    )
    command.add_argument(
        "--bits", metavar="BITS", help="only these: a field, numbers, or both, such as exponent or 30,31"
    )
    command.add_argument(
        "--seconds-per-trial", type=float, metavar="T", help="how long one trial takes; adds the time for all"
    )
    command.add_argument(
        "--spread", type=float, metavar="S", help="standard deviation between draws; adds the draws for each rate"
    )
    command.add_argument("--json", action="store_true", help="print JSON in place of the text")
    return command


def report(options: argparse.Namespace) -> str:
    """What is printed."""
    seconds, spread = options.seconds_per_trial, options.spread
    if seconds is not None and not 0 < seconds < 1e9:
        raise CampaignError(f"a trial takes more than 0 seconds and less than a billion; got {seconds:g}")
    if spread is not None and not 0 <= spread <= 1:
        raise CampaignError(f"--spread is that of shares, between 0 and 1; got {spread:g};\n  give 0.2 for 20 points")
    found = plan(
        load_model(options.spec),
        per=options.per,
        format=options.format,
        targets=options.target,
        bits=_bits(options.bits),
        margin=options.margin,
        confidence=options.confidence,
        share=options.share,
    )
    draws = None if spread is None else draws_needed(spread, options.margin, options.confidence)
    return _document(options, found, draws) if options.json else _text(options, found, draws)


def _bits(text: str | None) -> list[int | str] | None:
    return None if text is None else [int(bit) if bit.isdecimal() else bit for bit in text.split(",")]


def _document(options: argparse.Namespace, found: Plan, draws: int | None) -> str:
    seconds = options.seconds_per_trial
    rates = None if draws is None else {"spread": options.spread, "draws": draws, "seconds": _times(draws, seconds)}
    time = {"seconds_per_trial": seconds, "seconds": _times(found.trials, seconds)}
    return json.dumps({"spec": options.spec, **found.as_json(), **time, "each_rate": rates}, indent=2, allow_nan=False)


def _text(options: argparse.Namespace, found: Plan, draws: int | None) -> str:
    seconds = options.seconds_per_trial
    parts = [f"{options.spec}: {found.sentence()}."]
    if seconds is not None:
        parts.append(f"At {seconds:g} s for each: {duration(found.trials * seconds)}.")
    if draws is not None:
        time = "" if seconds is None else f", {duration(draws * seconds)}"
        claim = f"to +-{options.margin:g} at {100 * options.confidence:.6g} % confidence"
        scatter = f"if draws scatter by {options.spread:g}"
        parts.append(f"At a bit error rate: {draws:,} draws for each rate{time}: its mean {claim}, {scatter}.")
    width = min(120, max(100, shutil.get_terminal_size((110, 24)).columns))
    first, *others = [fill(part, width, break_on_hyphens=False) for part in parts]
    return "\n\n".join([first, found.table(), *others])


def _times(count: int, seconds: float | None) -> float | None:
    return None if seconds is None else count * seconds


def duration(seconds: float) -> str:
    """In the two largest units that say something: 1,921 s -> `32 min 1 s`, 190,000 s -> `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    left, words = round(seconds), []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        words.append(f"{count:,} {unit}" if count else "")
    first = next(number for number, word in enumerate(words) if word)
    return " ".join(filter(None, words[first : first + 2]))
