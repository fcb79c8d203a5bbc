"""`fitact-fx campaign ...` and `fitact-fx resume ...`: what their words mean; each returns what is to be printed."""

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

from fitact_fx.campaign_file import Words, checked, read_file, variant_of
from fitact_fx.campaign_keys import KEYS, NUMBER, NUMBERS, TEXTS, WHOLE, YES, Key
from fitact_fx.campaign_words import arguments, computing
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.campaigns.store import Store
from fitact_fx.cli_compare import add_compare
from fitact_fx.cli_report import add_report, add_store, refuse_unwritable, told
from fitact_fx.errors import CampaignError

ABOUT = """\
Measures how much each variant of a model loses under faults, every variant on the same ones, and prints a table
with intervals. Each trial is written to the store as soon as it is done: stop it when you like, kill it, lose
power; `fitact-fx resume` or the same command goes on where it was, and gives the very numbers that it would have.
"""
EXAMPLES = """\
a complete example, on handwritten digits (pip install 'fitact-fx[demo]'):
  fitact-fx demo                                     trains a network, hardens it, and leaves both in fitact-demo/
  fitact-fx campaign --store run.db --data digits --rate 1e-5 --rate 1e-4 \\
    --model fitact_fx.models:digits_cnn --weights fitact-demo/model.safetensors \\
    --variant plain --variant fitact,hardened=fitact-demo/fitact-neuron.safetensors
  fitact-fx report run.db --html run.html            also while it runs
without the demo, a trained network alone: --data digits --variant plain=fitact_fx.models:train_digits

the same as a file, digits.toml, for fitact-fx campaign digits.toml --store run.db:
  data = "digits"
  rates = [1e-5, 1e-4]
  model = "fitact_fx.models:digits_cnn"
  weights = "fitact-demo/model.safetensors"        # paths are relative to the file
  [variants.plain]
  [variants.fitact]
  hardened = "fitact-demo/fitact-neuron.safetensors"

A file's keys are the flags' names, but: rates, targets, suffix_memory; permanent, suffixes, skip and compile are
true or false. A flag replaces what the file says of the same, a list or all of the variants as a whole.

more questions, with the same variants:
  ... --kind single                                  one fault per trial: how often does it do harm?
  ... --kind single --per bit --margin 0.05          which bits are dangerous?
  ... --rate 1e-5 --at "*"                           faults in activations, in front of their bounds
  ... --rate 1e-6 --until 0.01                       stop a cell once its mean is known to +-1 point

Exit status: 0; 2 an error, told on stderr; 130 stopped with Ctrl-C.
"""
RESUME = """\
Goes on with a campaign that was begun by `fitact-fx campaign` and stopped before its end. The store says
what is to be done, and which folder it was begun in, relative to its own. Where models or data have moved,
give the campaign's command again with the new paths: it goes on too, if what lies there is the same.
"""
_CHANGEABLE = ("workers", "scheduler", "suffix_memory")  # on which no number depends
_REPLACED = {
    "workers": ("scheduler",),
    "scheduler": ("workers",),
    "kind": ("rates", "per", "margin"),
    "rates": ("kind", "per", "margin"),
}
"""What is said by several keys: one that is said again puts away what the others said before."""
_NOT_KEPT = ("store", "html")  # they are not about the campaign
_TYPES: Mapping[str, Any] = {WHOLE.name: int, NUMBER.name: float, NUMBERS.name: float}

Printed = tuple[str, int]


def add_campaigns(commands: Any, shape: dict[str, Any]) -> tuple[argparse.ArgumentParser, ...]:
    """These commands, and `report` and `compare`; `shape` is what every parser is made with."""
    campaign = commands.add_parser(
        "campaign", help="measure models under many faults", description=ABOUT, epilog=EXAMPLES, **shape
    )
    campaign.add_argument("file", nargs="?", type=Path, metavar="FILE.toml", help="what flags could say")
    groups = {name: campaign.add_argument_group(name) for name in dict.fromkeys(key.group for key in KEYS)}
    groups["models"].add_argument(
        "--variant",
        action="append",
        metavar="NAME[=SPEC][,weights=FILE][,hardened=FILE]",
        help="once per variant, the first being the reference; hardened: what fitact_fx.save wrote",
    )
    for key in KEYS:
        _add_key(groups[key.group], key)
    _add_printing(campaign)
    campaign.set_defaults(report=_campaign)

    resume = commands.add_parser("resume", help="go on with a campaign", description=RESUME, **shape)
    add_store(resume)
    for key in KEYS:
        if key.name in (*_CHANGEABLE, "html"):
            _add_key(resume, key)
    _add_printing(resume)
    resume.set_defaults(report=_resume)
    return campaign, resume, add_report(commands, shape), add_compare(commands, shape)


def _add_printing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command.add_argument("--json", action="store_true", help="print JSON in place of the text")


def _add_key(group: Any, key: Key) -> None:
    """As one flag, or two that say yes and no. What is not said is None: the file, or the library, has the default."""
    told = key.help.replace("%", "%%")
    if key.form is YES:
        yes, no = key.flags
        group.add_argument(yes, dest=key.name, action="store_true", default=None, help=told)
        group.add_argument(no, dest=key.name, action="store_false", default=None, help=f"see {yes}")
        return
    several = key.form in (TEXTS, NUMBERS)
    how = {"action": "append"} if several else {}
    group.add_argument(
        *key.flags, dest=key.name, metavar=key.metavar, type=_TYPES.get(key.form.name, str), help=told, **how
    )


def _campaign(options: argparse.Namespace) -> Printed:
    words = _over({} if options.file is None else read_file(options.file), _said(options))
    if "store" not in words:
        raise CampaignError("nothing says where the campaign is kept;\n  add --store FILE, such as --store run.db")
    store = Path(words["store"])
    refuse_unwritable(words.get("html"))
    kept = {name: value for name, value in words.items() if name not in _NOT_KEPT}
    result = _run(words, kept | {"folder": _seen_from(store)}, store, options)
    return told(result, store, options, words.get("html")), 0


def _resume(options: argparse.Namespace) -> Printed:
    refuse_unwritable(options.html)
    kept = _kept(options.made)
    changed = {name: value for name, value in _said(options).items() if name in _CHANGEABLE}
    store = options.made.resolve()
    folder = store.parent / kept["folder"]
    words = _over({name: value for name, value in kept.items() if name != "folder"}, changed)
    # A store that was taken elsewhere is gone on with from where the user stands.
    with chdir(folder) if folder.is_dir() else nullcontext():
        result = _run(words, kept, store, options)
    return told(result, options.made, options, options.html), 0


def _over(words: Words, said: Words) -> Words:
    """Later words win."""
    replaced = {name for each in said for name in _REPLACED.get(each, ())}
    return {name: value for name, value in words.items() if name not in replaced} | said


def _run(words: Words, kept: Words, store: Path, options: argparse.Namespace) -> CampaignResult:
    shown = getattr(options, "made", store)
    try:
        asked = arguments(words)
        with computing(words) as where:
            return run_campaign(**asked, **where, store=store, progress=not options.quiet, words=kept)
    except KeyboardInterrupt:
        on = f"`fitact-fx resume {shown}` goes on" if store.exists() else "nothing was kept yet"
        sys.stderr.write(f"stopped; {on}\n")
        raise


def _said(options: argparse.Namespace) -> Words:
    """The words that flags gave, in their forms."""
    said = {key.name: value for key in KEYS if (value := getattr(options, key.name, None)) is not None}
    named = [variant_of(text) for text in getattr(options, "variant", None) or ()]
    if len(dict(named)) < len(named):
        raise CampaignError("--variant gives two variants the same name;\n  give each a name of its own")
    return checked(said | ({"variants": dict(named)} if named else {}), "the command line")


def _kept(path: Path) -> Words:
    """What the campaign of this store was described with. CampaignError if it was made from Python."""
    found = Store.read(path)
    with Store.create_or_open(path, found.settings, found.conditions) as store:
        words = store.note("words")
    if not words:
        raise CampaignError(f"{path} was made from Python;\n  run the same run_campaign call again: it goes on from it")
    folder = words.pop("folder", ".")
    return checked(words, str(path)) | {"folder": folder}


def _seen_from(store: Path) -> str:
    """The current folder, relative to the store's: both may be moved together."""
    here, there = Path.cwd(), store.resolve().parent
    try:
        return os.path.relpath(here, there)
    except ValueError:  # another drive
        return str(here)
