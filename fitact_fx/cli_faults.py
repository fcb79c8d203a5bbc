"""`fitact-fx faults ...`: what its words mean. Each command returns what is to be printed, and the exit status."""

import argparse
import inspect
import json
from pathlib import Path
from textwrap import fill
from typing import Any

from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.fault_words import bits_in, fault_maker
from fitact_fx.faults import FaultList, FaultModel, Target, find_fault_model, formats
from fitact_fx.faults.fault_models import names as fault_names
from fitact_fx.faults.targets import KINDS
from fitact_fx.model_spec import example_input
from fitact_fx.replaying import replay, seeded_model, with_nodes
from fitact_fx.reports.fault_lists import list_json, list_text, outcome_json, outcome_text

ABOUT = """\
A fault list is the exact faults of one trial: which bit of which element of which tensor. Drawn from a seed, it is
the same on every machine; saved, it can be shown, and replayed bit for bit on any model that has those tensors.

fault models (--fault), at a --rate, a --count, or each --place:
{faults}
formats (--format), how numbers are thought of as stored:
{formats}
targets (--target), a kind with or without a glob over names, such as "parameters:layer1.*":
{targets} (these are hit where --at says, on --input)
"""
EXAMPLES = """\
examples:
  fitact-fx faults draw torchvision:resnet18 --rate 1e-6 --seed 0 --trial 3 --out trial3.safetensors
  fitact-fx faults draw torchvision:resnet18 --fault burst --width 4 --count 1 --bits exponent --format float32
  fitact-fx faults draw torchvision:resnet18 --place conv1.weight:0:30 --place fc.bias:7:31 --out two.safetensors
  fitact-fx faults draw torchvision:resnet18 --at "layer1.*" --input 4,3,224,224 --count 8 --out relu.safetensors
  fitact-fx faults show trial3.safetensors --rows 5
  fitact-fx faults replay trial3.safetensors torchvision:resnet18 --input 4,3,224,224 --weights trained.safetensors
"""
DRAW = """\
Draws the faults of one trial for a model, prints them, and with --out saves them. Only the names, shapes and
types of its tensors matter: it needs no weights. A rate hits parameters and bounds, a count parameters; --target
chooses otherwise. With --at and --input, activations are hit in their place.
"""
SHOW = "Prints a saved list: the fault model in words, the format, how many faults hit what, and the first ones."
REPLAY = """\
Applies a saved list to a model, and prints each word that is hit, before and after. With --input it runs the
model clean and faulty on example inputs, and says how far the outputs moved, in how many samples they are wrong
with nothing noticed (SDC), and in how many NaN or Inf is seen (DUE). Then it compares the model's memory with
what it was. Where weights are random, so is what becomes of the outputs: give trained ones.
"""
ROWS = 20  # in a table, unless told otherwise

Printed = tuple[str, int]


def add_faults(commands: Any, shape: dict[str, Any]) -> argparse.ArgumentParser:
    """`faults` and its own three commands; `shape` is what every parser is made with."""
    faults: argparse.ArgumentParser = commands.add_parser(
        "faults", help="draw, show and replay fault lists", description=_about(), epilog=EXAMPLES, **shape
    )
    own = faults.add_subparsers(title="commands", required=True, metavar="{draw,show,replay}")
    _add_draw(own.add_parser("draw", help="draw a list for a model; print or save it", description=DRAW, **shape))
    show = own.add_parser("show", help="a saved list in words and numbers", description=SHOW, **shape)
    show.add_argument("file", type=Path, metavar="FILE", help="what `faults draw --out` or FaultList.save wrote")
    _add_printing(show)
    show.set_defaults(report=_show)
    _add_replay(own.add_parser("replay", help="apply a list to a model and look", description=REPLAY, **shape))
    return faults


def _add_draw(draw: argparse.ArgumentParser) -> None:
    _add_spec(draw)
    draw.add_argument("--fault", default="bit-flip", metavar="NAME", help=f"one of {', '.join(fault_names())}")
    how = draw.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, metavar="R", help="the probability of each place, such as 1e-6")
    how.add_argument("--count", type=int, metavar="N", help="so many places in all")
    how.add_argument(
        "--place",
        action="append",
        metavar="TENSOR:ELEMENT:BIT",
        help="this very place, once per place; ELEMENT is a number or an index such as 3,0,1; no BIT for whole words",
    )
    draw.add_argument("--bits", metavar="BITS", help="only these: a field, numbers, or both, such as exponent or 30,31")
    draw.add_argument("--width", type=int, metavar="W", help="adjacent bits of a burst")
    draw.add_argument("--format", default="q15.16", metavar="NAME", help="how numbers are stored (default: q15.16)")
    draw.add_argument("--target", action="append", metavar="KIND[:GLOB]", help="what is hit; once per kind or glob")
    draw.add_argument("--at", action="append", metavar="GLOB", help="hit activations of these names; needs --input")
    draw.add_argument("--where", metavar="SIDE", help="after (the default) or before the bound of a hardened model")
    draw.add_argument("--permanent", action="store_true", help="with --at: hit the same element of every sample")
    _add_input(draw)
    draw.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    draw.add_argument("--trial", type=int, default=0, metavar="T", help="another trial of the same seed (default: 0)")
    draw.add_argument("--out", type=Path, metavar="FILE", help="save the list, as a safetensors file")
    _add_printing(draw)
    draw.set_defaults(report=_draw)


def _add_replay(again: argparse.ArgumentParser) -> None:
    again.add_argument("file", type=Path, metavar="FILE", help="what `faults draw --out` or FaultList.save wrote")
    _add_spec(again)
    weights = again.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="trained weights, a safetensors file")
    weights.add_argument(
        "--weights-seed",
        type=int,
        default=0,
        metavar="S",
        help="random weights are the same for the same seed (default: 0)",
    )
    _add_input(again)
    _add_printing(again)
    again.set_defaults(report=_replay)


def _add_spec(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "spec", metavar="SPEC", help="torchvision:NAME, or package.module:factory (called without arguments)"
    )


def _add_input(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="such as 4,3,224,224 or 4,128:int64, samples first; once per input of the model",
    )


def _add_printing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rows", type=_rows, metavar="N", help=f"print N at most (default: {ROWS}; with --json all)")
    command.add_argument("--json", action="store_true", help="print JSON in place of the tables")


def _draw(options: argparse.Namespace) -> Printed:
    fault = _fault_model(options)
    model, targets = _drawn_on(options)
    faults = fault.draw(model, options.format, options.seed, options.trial, targets)
    if options.out is not None:
        faults.save(options.out)
    if options.json:
        out = None if options.out is None else str(options.out)
        return _json({"spec": options.spec, "file": out, **list_json(faults, options.rows)}), 0
    text = list_text(faults, options.spec, _limit(options))
    return text if options.out is None else f"{text}\n\nSaved in {options.out}.", 0


def _show(options: argparse.Namespace) -> Printed:
    faults = FaultList.load(options.file)
    if options.json:
        return _json({"file": str(options.file), **list_json(faults, options.rows)}), 0
    return list_text(faults, str(options.file), _limit(options)), 0


def _replay(options: argparse.Namespace) -> Printed:
    faults = FaultList.load(options.file)
    inputs = tuple(map(example_input, options.input or ()))
    model = seeded_model(options.spec, options.weights_seed, options.weights)
    outcome = replay(faults, model, inputs)
    status = 1 if outcome.unrestored else 0
    source = f"seed {options.weights_seed}" if options.weights is None else str(options.weights)
    if options.json:
        named = {"file": str(options.file), "spec": options.spec, "weights": source}
        return _json(named | outcome_json(outcome, faults, options.rows)), status
    title = f"{options.file} on {options.spec} (weights: {source})"
    return outcome_text(outcome, faults, title, _limit(options)), status


def _drawn_on(options: argparse.Namespace) -> tuple[nn.Module, list[str] | None]:
    """The model to draw on, with injection nodes if there are to be any, and the targets."""
    targets: list[str] | None = options.target
    in_activations = any(Target.parse(each).kind == "activations" for each in targets or ())
    if options.at is None:
        if in_activations or options.input or options.where or options.permanent:
            raise FaultError("nothing says which activations;\n  add --at GLOB, for all of them --at '*'")
        return seeded_model(options.spec), targets
    if not options.input:
        raise FaultError("activations have shapes only when the model runs;\n  add --input SHAPE to --at")
    if targets is not None and not in_activations:
        raise FaultError("--at is for activations, and they are no target;\n  add --target activations")
    inputs = tuple(map(example_input, options.input))
    where, plain = options.where or "after", seeded_model(options.spec)
    model = with_nodes(plain, options.at, where, options.format, inputs, permanent=options.permanent)
    return model, targets if options.place or targets else ["activations"]


def _fault_model(options: argparse.Namespace) -> FaultModel:
    places = None if options.place is None else [_place(each) for each in options.place]
    bits = None if options.bits is None else bits_in(options.bits)
    given = {"rate": options.rate, "count": options.count, "places": places, "bits": bits, "width": options.width}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return fault_maker(options.fault, wanted)(**wanted)


def _place(text: str) -> tuple[Any, ...]:
    tensor, *numbers = text.split(":")
    try:
        element, *bit = [tuple(map(int, each.split(","))) for each in numbers]
        (bits,) = bit or [()]
    except ValueError:
        element, bits = (), (0, 0)
    if not tensor or len(bits) > 1:
        form = "TENSOR:ELEMENT:BIT such as conv1.weight:0:30, or TENSOR:ELEMENT for whole words"
        raise FaultError(f"{text!r} is no place;\n  write {form}")
    return (tensor, element[0] if len(element) == 1 else element, *bits)


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _limit(options: argparse.Namespace) -> int:
    return ROWS if options.rows is None else int(options.rows)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False)


def _about() -> str:
    faults = "\n".join(f"  {name:<13}{_in_words(name)}" for name in fault_names())
    stored = ", ".join(formats.names())
    wrapped = fill(stored, 110, initial_indent="  ", subsequent_indent="  ")
    return ABOUT.format(faults=faults, formats=wrapped, targets="  " + ", ".join(KINDS))


def _in_words(name: str) -> str:
    """The event of the fault model, with 2 for every number that it needs."""
    make = find_fault_model(name)
    needed = [each for each, found in inspect.signature(make).parameters.items() if found.default is found.empty]
    options = f" (with {' '.join(f'--{each} 2' for each in needed)})" if needed else ""
    return make(rate=0.0, **dict.fromkeys(needed, 2)).event + options
