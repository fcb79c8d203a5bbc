"""How to do one trial of a campaign again, in Python and in a shell."""

import json
import re

from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.reports.campaigns.html import Markup, code, joined, paragraph
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import cell_name

_MODEL = re.compile(r"fault=(\w+)\(")
_PLAIN = "a bit flips"  # what BitFlip says of itself where it was given nothing else


def kept(row: Row) -> float:
    """Least for the trial that hurt most."""
    return row.accuracy if row.accuracy is not None else 1 - row.due


def replay(view: View) -> Markup:
    """The Python lines and the command for the worst trial of the last variant."""
    found = [
        (cell, row)
        for cell in view.result.conditions
        if (row := view.worst_row(view.variants[-1], cell.name)) is not None
    ]
    if not found:
        return paragraph("No trial has run yet.")
    cell, row = min(found, key=lambda pair: kept(pair[1]))
    about = (
        f"Trial {row.trial} of {cell_name(cell)} with {row.variant}, in Python, with the variants as they were given:"
    )
    return joined(
        paragraph(about), code(*python_lines(view, cell, row)), paragraph("In a shell:"), code(*_shell(view, cell, row))
    )


def python_lines(view: View, cell: Condition, row: Row) -> list[str]:
    """What draws the list of a trial, checks that it is the one, saves and applies it."""
    settings = view.settings
    drawn = _draw(view, cell, row) if _is_plain_rate(view, cell) else _from_campaign(view, cell, row)
    return [
        *drawn,
        f"assert faults.checksum == {json.dumps(row.checksum)}",
        f"faults.save({json.dumps(_file(row))})",
        f"with faults.applied({_model(row)}):",
        f"    ...  # {_model(row)} has the faults, all of them, in {settings['format']}",
    ]


def _is_plain_rate(view: View, cell: Condition) -> bool:
    return cell.rate is not None and view.settings["fault"] == _PLAIN and not view.settings.get("at")


def _draw(view: View, cell: Condition, row: Row) -> list[str]:
    """Bit flips at a rate need nothing but the fault model."""
    settings, targets = view.settings, _targets(view)
    named = f", targets={json.dumps(targets)}" if targets else ""
    keys = f"{json.dumps(settings['format'])}, seed={settings['seed']}, trial={row.trial}{named}"
    return [
        "from fitact_fx.faults import BitFlip",
        f"faults = BitFlip(rate={cell.rate!r}).draw({_model(row)}, {keys})",
    ]


def _from_campaign(view: View, cell: Condition, row: Row) -> list[str]:
    """Anything else is drawn as the campaign drew it: by the cell of its kind."""
    settings, question = view.settings, str(view.settings["question"])
    kind = question.partition("(")[0]
    models = ", ".join(sorted({"BitFlip", "Memory", "find_format", *_MODEL.findall(question)}, key=str.lower))
    trials = "None" if settings["kind"] == "exhaustive" else str(cell.trials)
    inferences = settings["samples"] if settings["persistence"] == "transient" else None
    asked = f"Question(fault, memories, stored, {_targets(view) or None!r}, {trials})"
    return [
        f"from fitact_fx.campaigns.kinds import {kind}",
        "from fitact_fx.campaigns.questions import Question",
        f"from fitact_fx.faults import {models}",
        *_fault(str(settings["fault"])),
        f"stored = find_format({json.dumps(settings['format'])})",
        *_injected(view, row),
        "memories = {name: Memory.of(model) for name, model in variants.items()}",
        f"cells = {question}.cells({asked})",
        f"cell = next(one for one in cells if one.condition.name == {json.dumps(cell.name)})",
        f"memory = memories[{json.dumps(row.variant)}]",
        f"faults = cell.faults(memory, stored, {settings['seed']}, {row.trial}, {inferences})",
    ]


def _fault(given: str) -> list[str]:
    """What the campaign was given as its fault model, as far as its words tell."""
    among = re.fullmatch(r"a bit among (.*) flips", given)
    if among is not None:
        bits = [int(bit) if bit else name for name, bit in re.findall(r"the (\w+) bits|bit (\d+)", among[1])]
        return ["from functools import partial", f"fault = partial(BitFlip, bits={bits!r})"]
    return ["fault = BitFlip" if given == _PLAIN else f"fault = ...  # as it was given: {given}"]


def _injected(view: View, row: Row) -> list[str]:
    """Faults in activations need injection nodes; `inputs` is one batch of the data."""
    settings = view.settings
    if not settings.get("at"):
        return []
    at = f"{json.dumps(list(settings['at']))}, BitFlip(count=1), {json.dumps(settings['where'])}"
    room = f"permanent={settings['persistence'] == 'permanent'}, capacity={max(1, row.faults)}"
    options = f"example_inputs=inputs, {room}"
    return [
        "import fitact_fx",
        f"injected = lambda model: fitact_fx.inject(model, {at}, {options})",
        "variants = {name: injected(model) for name, model in variants.items()}",
    ]


def _targets(view: View) -> list[str]:
    """What is usual is left out: a variant without bounds has none to target."""
    targets = list(view.settings["targets"])
    return [] if targets == (["parameters", "bounds"] if view.rates else ["parameters"]) else targets


def _model(row: Row) -> str:
    return f"variants[{json.dumps(row.variant)}]"


def _file(row: Row) -> str:
    return f"trial{row.trial}.safetensors"


def _shell(view: View, cell: Condition, row: Row) -> list[str]:
    """Drawn there where the command line can; else what Python has saved is replayed."""
    settings = view.settings
    replayed = f"fitact-fx faults replay {_file(row)} MODEL --weights WEIGHTS --input SHAPE"
    if not _is_plain_rate(view, cell):
        return [replayed]
    targets = "".join(f" --target '{one}'" for one in _targets(view))
    return [
        f"fitact-fx faults draw MODEL --rate {cell.rate!r}{targets} \\",
        f"    --format {settings['format']} --seed {settings['seed']} --trial {row.trial} --out {_file(row)}",
        replayed,
    ]
