"""`fitact-fx ...`: the command line. It reads words, calls the library and prints; nothing else."""

import argparse
import json
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from fitact_fx import cli_coverage, cli_plan
from fitact_fx.cli_campaigns import add_campaigns
from fitact_fx.cli_faults import add_faults
from fitact_fx.cli_plan import add_plan
from fitact_fx.demo import NETWORKS, Options, run
from fitact_fx.errors import FitactError
from fitact_fx.inspection import inspect
from fitact_fx.model_spec import example_input, load_model
from fitact_fx.reports.inspected import text

DESCRIPTION = """\
Makes PyTorch models survive hardware faults: puts a bound behind every activation, so that a value
that a flipped bit has blown up is stopped where it appears, and a guard before every parameter, so that a
faulty weight is not used.

how it works, in Python:
  hard = fitact_fx.harden(model, granularity="neuron")    a copy with a bound behind every activation
  fitact_fx.calibrate(hard, batches)                      sets the bounds from the ranges seen on clean data
  fitact_fx.post_train(hard, batches, max_drop=0.005)     tightens them, within half a point of accuracy
  hard = fitact_fx.harden(model, scheme="clip_act", data=batches, guard="parameters")
                                                          another scheme (ranger, proact), and a guard beside it
  fitact_fx.scrub(hard)                                   repairs what a fault left in the weights, and says what
  fitact_fx.store_bounds(hard, "int8")                    the same bounds in a quarter of the memory
  fast = fitact_fx.lower(hard, (example,))                compiles it; the bounds become a comparison each
  fitact_fx.run_campaign({"plain": model, "hard": hard}, test, BitFlip, [1e-6, 1e-5], store="run.db")
                                                          measures it: accuracy under faults, with intervals
"""
EXAMPLES = """\
examples:
  fitact-fx demo                                                 all of the above on handwritten digits, in minutes
  fitact-fx demo --model resnet20 --data DIR                     the same with a trained ResNet-20 on CIFAR-10
  fitact-fx inspect torchvision:resnet50 --input 1,3,224,224     what can be protected, and the memory it takes
  fitact-fx inspect my_package.networks:make_net --json          the same for your model, for programs
  fitact-fx coverage torchvision:resnet50 --input 1,3,224,224    where a fault could still get past the bounds
  fitact-fx faults draw torchvision:resnet18 --rate 1e-6         the bits that go wrong in one trial; replay them
  fitact-fx plan torchvision:resnet18 --per tensor               how many faults a claim takes
  fitact-fx campaign run.toml --store run.db --workers 8         variants beside each other on the same faults
  fitact-fx resume run.db; fitact-fx report run.db --html run.html; fitact-fx compare run.db

Exit status: 0 all is well; 1 `inspect` found that the model cannot be protected, or `faults replay` that the
model's memory is not as it was before; 2 an error, told on stderr.
"""
INSPECT = """\
Prints every activation of a model, how many bounds it takes at each granularity, and what cannot be
protected and why. The model is looked at in evaluation mode; it needs no weights and no data.
"""
DEMO = """\
Trains a small network on handwritten digits (or takes a trained ResNet-20), hardens it three ways, flips
bits in the memory of its parameters and bounds, and prints what is left of its accuracy.
"""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are as short as ours."""

    def error(self, message: str) -> NoReturn:
        print(f"fitact-fx: error: {message}\n  see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (see `inspect`), 2 for an error, 130 interrupted."""
    options = parser().parse_args(argv)
    try:
        status: int = options.command(options)
        sys.stdout.flush()  # a reader that has gone away shows here and not at exit
    except KeyboardInterrupt:
        print("fitact-fx: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fitact-fx inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  whatever it is, the user gets two lines unless they ask for more
        if "debug" in options:
            traceback.print_exc()
        else:
            print(f"fitact-fx: error: {_in_two_lines(error)}", file=sys.stderr)
        return 2
    return status


def parser() -> Parser:
    """Everything the command line understands."""
    everywhere = argparse.ArgumentParser(add_help=False)
    # Left out unless given: a subcommand's default would overwrite a `--debug` that stands before it.
    everywhere.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show errors in full")
    shape: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "parents": [everywhere]}
    top = Parser("fitact-fx", description=DESCRIPTION, epilog=EXAMPLES, **shape)
    top.add_argument(
        "--version", action="version", version=f"fitact-fx {version('fitact-fx')}, torch {torch.__version__}"
    )
    commands = top.add_subparsers(
        title="commands", required=True, metavar="{demo,inspect,coverage,faults,plan,campaign,resume,report,compare}"
    )

    demo = commands.add_parser("demo", help="train, harden and attack a small network", description=DEMO, **shape)
    demo.add_argument(
        "--model", default="digits", metavar="NAME", help=f"one of {', '.join(NETWORKS)} (default: digits)"
    )
    demo.add_argument("--data", type=Path, metavar="DIR", help="where models/ and data/ are; needed for resnet20")
    demo.add_argument("--trials", type=_positive, metavar="N", help="fault draws per rate (default: 60; resnet20: 16)")
    demo.add_argument(
        "--images", type=_positive, metavar="N", help="test images per draw (default: 512; resnet20: 500)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("fitact-demo"),
        metavar="DIR",
        help="for what it writes (default: ./fitact-demo)",
    )
    demo.add_argument("--json", action="store_true", help="print JSON in place of the table")
    demo.add_argument("--no-run-time", dest="run_time", action="store_false", help="skip compiling and timing")
    demo.set_defaults(command=_demo)

    look = commands.add_parser("inspect", help="what can be protected in a model", description=INSPECT, **shape)
    look.add_argument(
        "spec", metavar="SPEC", help="torchvision:NAME, or package.module:factory (called without arguments)"
    )
    look.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="such as 1,3,224,224 or 1,128:int64; once per input of the model",
    )
    look.add_argument("--json", action="store_true", help="print JSON in place of the table")
    look.set_defaults(command=_inspect)

    cli_coverage.add_coverage(commands, shape).set_defaults(command=_coverage)
    add_faults(commands, shape).set_defaults(command=_told)
    add_plan(commands, shape).set_defaults(command=_plan)
    for command in add_campaigns(commands, shape):
        command.set_defaults(command=_told)
    return top


def _demo(options: argparse.Namespace) -> int:
    chosen = Options(
        options.model, options.data, options.trials, options.images, options.seed, options.out, options.run_time
    )
    result = run(chosen)
    print(json.dumps(result.as_json(), indent=2) if options.json else result.text())
    return 0


def _inspect(options: argparse.Namespace) -> int:
    inputs = tuple(map(example_input, options.input or ()))
    found = inspect(load_model(options.spec), inputs or None)
    if options.json:
        print(json.dumps({"spec": options.spec, **found.as_json()}, indent=2))
    else:
        print(text(found, options.spec, min(120, max(100, shutil.get_terminal_size((110, 24)).columns))))
    return 0 if found.obstacle is None else 1


def _coverage(options: argparse.Namespace) -> int:
    print(cli_coverage.report(options))
    return 0


def _plan(options: argparse.Namespace) -> int:
    print(cli_plan.report(options))
    return 0


def _told(options: argparse.Namespace) -> int:
    printed, status = options.report(options)
    print(printed)
    return int(status)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _in_two_lines(error: Exception) -> str:
    """The first line, and behind it all the others as one."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    if not isinstance(error, FitactError | OSError):
        first, others = f"{type(error).__name__}: {first}", ["a mistake of fitact-fx, it seems; --debug shows where"]
    return "\n  ".join(filter(None, (first, " ".join(line.strip() for line in others))))
