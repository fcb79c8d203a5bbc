"""`fitact-fx coverage ...`: what its words mean, and the report that it prints."""

import argparse
import json
import shutil
from typing import Any

from fitact_fx.coverage import coverage
from fitact_fx.model_spec import example_input, load_model
from fitact_fx.places import ACTIVATIONS, NAMES
from fitact_fx.reports.covered import text

ABOUT = """\
Prints every call of a model from which a fault could come to the output unbounded, if the model were hardened
with these --sites. Each call of the graph is one of:

  bounded      a bound stands directly behind it
  contained    every way from it to the output goes through a bound
  open         some way does not; the report says why, and which --sites would put a bound there

A fault in a weight shows in the call that reads it. Calls that only pass on an open value, and compute nothing
of their own, are listed last. Calls that are alike, as in the blocks of a network, share a line: layer*.*.add.
With --input, a model that cannot be traced symbolically is exported, and the activations are compared with
those that torch.export sees in the same model. Where code could not be seen, that is said.
"""
EXAMPLES = """\
examples:
  fitact-fx coverage torchvision:resnet50 --input 1,3,224,224         three open calls, behind the last activation
  fitact-fx coverage torchvision:resnet50 --sites activations,logits  none
  fitact-fx coverage torchvision:vit_b_16 --sites activations,norm    what is open in a transformer
  fitact-fx coverage my_package.networks:make_net --all               every call of your model, open or not

Exit status: 0, whatever is open; 2 an error, told on stderr.
"""


def add_coverage(commands: Any, shape: dict[str, Any]) -> argparse.ArgumentParser:
    """`coverage`; `shape` is what every parser is made with."""
    command: argparse.ArgumentParser = commands.add_parser(
        "coverage", help="where a fault could get past the bounds", description=ABOUT, epilog=EXAMPLES, **shape
    )
    command.add_argument(
        "spec", metavar="SPEC", help="torchvision:NAME, or package.module:factory (called without arguments)"
    )
    command.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="such as 1,3,224,224 or 1,128:int64; once per input of the model",
    )
    command.add_argument(
        "--sites",
        default=ACTIVATIONS,
        metavar="PLACES",
        help=f"which calls are bounded, several with commas between: {', '.join(NAMES)} (default: {ACTIVATIONS})",
    )
    command.add_argument("--all", action="store_true", dest="every", help="list every call, and not only the open ones")
    command.add_argument("--json", action="store_true", help="print JSON in place of the report")
    return command


def report(options: argparse.Namespace) -> str:
    """What is printed."""
    inputs, sites = tuple(map(example_input, options.input or ())), options.sites.split(",")
    found = coverage(load_model(options.spec), inputs or None, sites=sites)
    if options.json:
        return json.dumps({"spec": options.spec, "sites": sites, **found.as_json()}, indent=2)
    width = min(120, max(100, shutil.get_terminal_size((110, 24)).columns))
    return text(found, options.spec, width, every=options.every)
