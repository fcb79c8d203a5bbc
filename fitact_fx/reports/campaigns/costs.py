"""The sections on what it covers and costs, what failed, and what must not be concluded from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fitact_fx.reports.campaigns.html import (
    SHOWN,
    Markup,
    bullets,
    element,
    folded,
    joined,
    long_table,
    paragraph,
    table,
)
from fitact_fx.reports.campaigns.summary import unfinished
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import NOTHING, cell_name, count, duration, listed, number, percent, span
from fitact_fx.reports.words import size
from fitact_fx.statistics import rule_of_three

_MEMORIES = {
    "parameters": "parameters",
    "bounds": "the bounds' own memory",
    "buffers": "buffers (such as the running means of BatchNorm)",
    "activations": "activations while they are computed",
}

_SIMULATED = (
    "This is a simulation. No failure rate in time (FIT) and no ASIL claim follows from a simulated bit error rate "
    "alone: that needs the raw error rate of the memory in question, its protection, and the share of time in use."
)
_EARLY = "Cells that stopped early have intervals that are a bit optimistic, since they were looked at often."


def coverage(view: View) -> Markup:
    """Every site of every variant: protected how, or skipped and why."""
    return joined(*(_covered(variant, about) for variant, about in view.settings["variants"].items()))


def _covered(variant: str, about: Mapping[str, Any]) -> Markup:
    sites: Sequence[Mapping[str, Any]] = about.get("coverage") or ()
    title = element("h3", variant)
    if not sites:
        return joined(title, paragraph("No site is known of this variant: it has no graph, or nothing was looked for."))
    good = sum(bool(one["protected"]) for one in sites)
    front = about.get("frontend")
    made = f" (front end {front})" if front else ""
    said = paragraph(f"{good} of {count(len(sites), 'site')} protected{made}.")
    rows = [
        [one["site"], one["kind"], "protected" if one["protected"] else "skipped", str(one["how"])] for one in sites
    ]
    rows.sort(key=lambda row: row[2] == "protected")  # what is open first
    listing = table(f"Sites of {variant}", ("site", "kind", "status", "how, or why not"), rows, words=4)
    return joined(title, said, listing if len(rows) <= SHOWN else folded(f"All {len(rows):,} sites", listing))


def overheads(view: View) -> Markup:
    """What the protection costs, and what the campaign itself did."""
    variants = view.settings["variants"]
    reference = variants[view.reference].get("seconds")
    rows = [_overhead(variant, about, reference) for variant, about in variants.items()]
    headers = ("variant", "bounds", "limits", "of parameters", "clean pass", "relative")
    said = (
        "Bounds, and the limits of a guard with all their copies, are memory that the protection adds. A clean pass "
        "over the data was timed once, in this process and on this machine, next to whatever else it did: read small "
        "differences as noise."
    )
    return joined(
        table("Cost of each variant", headers, rows), paragraph(said), element("h3", "The campaign itself"), *_own(view)
    )


def _overhead(variant: str, about: Mapping[str, Any], reference: float | None) -> list[str]:
    parameters, seconds = about.get("parameter_bytes"), about.get("seconds")
    added = [about.get(name) or 0 for name in ("bound_bytes", "guard_bytes")]
    part = f"{percent(sum(added) / parameters)} %" if any(added) and parameters else NOTHING
    relative = f"{seconds / reference:.2f}x" if seconds and reference else NOTHING
    return [variant, *(size(each) if each else NOTHING for each in added), part, _seconds(seconds), relative]


def _seconds(seconds: float | None) -> str:
    if not seconds:
        return NOTHING
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)


def _own(view: View) -> list[Markup]:
    ways = Counter((row.variant, row.way) for row in view.result.rows)
    rows = [[name, *(f"{ways[name, way]:,}" for way in ("whole", "suffix", "skipped"))] for name in view.variants]
    sessions = view.result.sessions
    seconds = sum(float(one.get("seconds") or 0.0) for one in sessions)
    trials = sum(int(one.get("trials") or 0) for one in sessions)
    pace = f", {trials / seconds:.3g} trials per second" if seconds else ""
    done = f"{count(trials, 'trial')} in {duration(seconds)}{pace}, in {count(len(sessions), 'session')}."
    said = (
        "whole: all of the network was run; suffix: only what depends on the tensors that were hit; skipped: the "
        "faults provably change nothing."
    )
    headers = ("variant", "whole", "suffix", "skipped")
    return [paragraph(done), table("How trials were evaluated", headers, rows), paragraph(said)]


def failures(view: View) -> Markup:
    """What raised, the network or a metric, trial by trial."""
    cells = {cell.name: cell_name(cell) for cell in view.result.conditions}
    rows = [
        [cells.get(row.cell, row.cell), row.variant, str(row.trial), row.error]
        for row in view.result.rows
        if row.error is not None
    ]
    if not rows:
        return paragraph(f"No metric failed in any of {count(len(view.result.rows), 'trial')}.")
    said = (
        f"In {count(len(rows), 'trial')} of {len(view.result.rows):,} the network or a metric raised, or gave no "
        "number. Means of metrics leave these trials out; a network that raises counts as a DUE of all samples."
    )
    headers = ("condition", "variant", "trial", "what was raised")
    return joined(paragraph(said), long_table("Failures", headers, rows, rows[:SHOWN], words=4))


def limits(view: View) -> Markup:
    """What must not be concluded."""
    items = [
        _SIMULATED,
        *_unit(view),
        _data(view),
        _not_hit(view),
    ]
    left = unfinished(view)
    if left:
        items.append(
            f"The campaign is not finished: {count(len(left), 'cell')} of variants have fewer trials than planned."
        )
    if view.settings.get("until") is not None:
        items.append(
            "Cells that stopped early have intervals that are a bit optimistic, since they were looked at often."
        )
    many = len(view.result.conditions) * len(view.variants)
    if many > 1:
        miss = number((1 - view.confidence) * many, "intervals")
        items.append(
            f"There are {many:,} means per measure, each with a {100 * view.confidence:g} % interval of its own: "
            f"about {miss} of these miss the truth by chance."
        )
    return bullets(items)


def _unit(view: View) -> list[str]:
    numbers = [len(rows) for rows in view.rows.values()]
    if not numbers:
        return ["No trial has run, so nothing can be concluded at all."]
    if view.settings["kind"] == "exhaustive":
        return ["Every place was to be hit once, alone: faults that come together were not looked at."]
    rare = number(rule_of_three(min(numbers), view.confidence), "due")
    unit = f"each mean stands on {span(numbers)} draws, however many samples there are."
    unseen = f"Ruin that is rarer than 3 / {min(numbers):,} draws, {rare} %, could not be seen"
    single = [] if not view.one_by_one else ["Each trial has one fault: faults that come together were not looked at."]
    return [
        f"The draw is the unit, not the sample: {unit}",
        f"{unseen}: that none was seen does not say that there is none.",
        *single,
    ]


def _data(view: View) -> str:
    samples = view.settings["samples"]
    step = f", so that one sample is {number(1 / samples, 'accuracy')} points" if samples else ""
    return (
        f"All of it is about {count(samples, 'sample')} of one data set{step}, and about these trained weights. "
        "Intervals are over the draws of faults; what other samples would give is not in them."
    )


def _not_hit(view: View) -> str:
    targets = {target.partition(":")[0] for target in view.settings["targets"]}
    some = [target for target in view.settings["targets"] if ":" in target]
    targets |= {"activations"} if view.settings.get("at") else set()
    missed = [words for name, words in _MEMORIES.items() if name not in targets]
    partly = f" Only these of them were: {listed(some)}." if some else ""
    also = "instructions, addresses, control logic and everything outside of the network"
    return f"Not hit: {listed([*missed, also])}.{partly}"
