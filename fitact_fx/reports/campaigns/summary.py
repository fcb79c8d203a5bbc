"""What a campaign says in sentences, for the top of its page and for the terminal."""

from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import (
    MEASURES,
    cell_name,
    count,
    estimate,
    listed,
    measure_name,
    number,
    signed,
    span,
    unit_of,
    verdict,
)
from fitact_fx.statistics import Interval, rule_of_three


def answer(view: View) -> list[str]:
    """The answer in two or three sentences: what is lost where, whether protection helps, how sure that is."""
    if not view.result.rows:
        return ["No trial has run yet, so there is nothing to tell."]
    said = _rates(view) if view.rates else _single(view)
    return [*said, sureness(view)]


def _rates(view: View) -> list[str]:
    cell = telling(view)
    if cell is None:
        return ["No trial has a value yet."]
    last, measure = view.variants[-1], view.main
    kept = [_kept(view, variant, cell) for variant in dict.fromkeys((view.reference, last))]
    said = [f"At a bit error rate of {cell_name(cell)}, {listed(kept)}."]
    if last != view.reference:
        said.append(compared(view, last, view.reference, cell, measure))
    return said


def telling(view: View) -> Condition | None:
    """The rate that says most: where the last variant is farthest ahead, or where a single one loses most."""
    cells = [one for one in view.rates if view.estimate(view.reference, one, view.main) is not None]

    def gain(cell: Condition) -> float:
        if len(view.variants) > 1:
            found = view.difference(view.variants[-1], view.reference, cell.name, view.main)
            return -1.0 if found is None else found.mean
        return loss(view, view.reference, cell)

    return max(cells, key=gain, default=None)


def loss(view: View, variant: str, cell: Condition) -> float:
    """How far the mean lies below the clean value."""
    found, clean = view.estimate(variant, cell, view.main), view.clean(variant, view.main)
    return 0.0 if found is None or clean is None else clean - found.mean


def _kept(view: View, variant: str, cell: Condition) -> str:
    measure = view.main
    found, clean = view.estimate(variant, cell, measure), view.clean(variant, measure)
    mean = estimate(found, measure, unit_of(measure))
    if measure != "accuracy" or found is None or clean is None:
        return f"{variant} has {measure_name(measure)} {mean}"
    lost = clean - found.mean
    moved = f"{number(abs(lost), measure)} points {'lost' if lost >= 0 else 'gained'}"
    return f"{variant} keeps {mean} of its {number(clean, measure)} % accuracy ({moved})"


def compared(view: View, variant: str, other: str, cell: Condition, measure: str) -> str:
    """One paired difference as a sentence."""
    found = view.difference(variant, other, cell.name, measure)
    if found is None:
        return f"{variant} and {other} have no trial in common there, so they cannot be compared."
    draws = count(view.common(variant, other, cell.name, measure), "draw")
    return f"On the same faults ({draws}), {variant} is {difference_in_words(found, other, measure)}."


def difference_in_words(found: Interval, other: str, measure: str) -> str:
    """ "12.3 points [10.1, 14.5] better than plain", or that the draws cannot tell."""
    said = verdict(found, measure)
    if said == "not to be told apart":
        return f"not to be told apart from {other} ({signed(found, measure)}{_points(measure)})"
    if said == "too few draws":
        return f"{signed(found, measure)}{_points(measure)} beside {other}, and one draw says nothing about the spread"
    sign = 1 if found.mean > 0 else -1
    low, high = sorted((sign * found.low, sign * found.high))
    inside = f"[{number(low, measure, found.mean)}, {number(high, measure, found.mean)}]"
    return f"{number(sign * found.mean, measure)}{_points(measure)} {inside} {said} than {other}"


def _single(view: View) -> list[str]:
    cells, measure = view.strata, view.harm
    found = [(name, one) for name in view.variants if (one := view.pooled(name, cells, measure)) is not None]
    if not found:
        return ["No trial has a value yet."]
    event = "makes wrong" if measure == "sdc1" else "makes NaN or infinite"
    drawn = "A single fault" if view.one_by_one else "One draw of faults"
    of = "of the samples that were right without it" if measure == "sdc1" else "of all samples"
    hurt = [f"{estimate(one, measure, ' %')} with {name}" for name, one in found]
    said = [f"{drawn}, wherever it strikes, {event} on average {listed(hurt)}, {of}."]
    parts = _worst_parts(view)
    if parts:
        said.append(f"With {view.reference}, it hurts most in {listed(parts)}.")
    if len(view.variants) > 1 and len(cells) == 1:
        said.append(compared(view, view.variants[-1], view.reference, cells[0], measure))
    elif len(found) > 1:
        said.append(_beside(view, view.variants[-1], view.reference))
    return said


def _worst_parts(view: View) -> list[str]:
    parts = []
    for cells in (view.sites, view.tensors, view.bits):
        means = [(one.mean, cell) for cell in cells if (one := view.estimate(view.reference, cell, view.harm))]
        mean, cell = max(means, key=lambda pair: pair[0], default=(0.0, None))
        if cell is not None and mean > 0:
            where = f"bit {cell.bit} ({view.field(cell.bit)})" if cell.bit is not None else cell_name(cell)
            parts.append(f"{where} ({number(mean, view.harm)} %)")
    return parts


def _beside(view: View, variant: str, other: str) -> str:
    """In how many strata a variant is better or worse than another, on the same faults."""
    differences = [view.difference(variant, other, cell.name, view.harm) for cell in view.strata]
    said = [verdict(found, view.harm) for found in differences]
    of = f"{said.count('better')} of {count(len(said), 'cell')} and worse in {said.count('worse')}"
    return f"On the same faults, {variant} is better than {other} in {of}."


def sureness(view: View) -> str:
    """How sure all of this is."""
    numbers = [len(rows) for rows in view.rows.values()]
    inside = f"in brackets: {100 * view.confidence:g} % intervals"
    if view.settings["kind"] == "exhaustive":
        if finished(view):
            return "Every place was hit, so that nothing is estimated, but that the samples stand for others."
        return "The campaign is not finished, and what is there are the first places of each cell, not a sample."
    rare = number(rule_of_three(min(numbers), view.confidence), "due")
    unseen = f"what ruins fewer than {rare} % of draws may not have been seen"
    return f"Each mean is over {span(numbers)} draws of faults ({inside}); {unseen}."


def finished(view: View) -> bool:
    """Whether every cell has all its trials, or was stopped early."""
    return not unfinished(view)


def unfinished(view: View) -> list[tuple[str, Condition]]:
    """Cells that have neither all their trials nor a reason to stop."""
    return [
        (variant, cell)
        for cell in view.result.conditions
        for variant in view.variants
        if view.trials(variant, cell.name) < cell.trials and not view.stopped(variant, cell.name)
    ]


def stopped(view: View) -> list[tuple[str, Condition]]:
    """Cells that stopped before their last trial, since they knew enough."""
    found = [(name, cell) for cell in view.result.conditions for name in view.variants]
    return [(name, cell) for name, cell in found if view.stopped(name, cell.name)]


def stop_rule(view: View) -> str:
    """When cells stop, which did, and what that does to the intervals."""
    until, cells = view.settings.get("until"), stopped(view)
    if until is None:
        said = "No stop rule: each cell has the number of trials that was asked for."
    else:
        measure = view.settings["measure"]
        width = f"interval for {measure_name(measure)} is no wider than ±{number(until, measure)}{_points(measure)}"
        names = listed([f"{variant} at {cell_name(cell)}" for variant, cell in cells[:6]])
        more = f" and {len(cells) - 6:,} more" if len(cells) > 6 else ""
        said = (
            f"Stop rule: a cell ends early once its {width}, after {view.settings['minimum']:,} draws at least. "
            + (f"Stopped early: {names}{more}. " if cells else "No cell stopped early. ")
            + "Looking often makes intervals a bit optimistic: they stop at a moment when they happen to be narrow. "
            "Against that, they reach as far as an outcome could move the mean that no draw has shown."
        )
    left = unfinished(view)
    return said + (f" Not finished: {count(len(left), 'cell')} still lack trials." if left else "")


def comparison(view: View) -> list[str]:
    """Each variant against the reference, and the last against the others: where it says most, or over all strata."""
    if view.strata:
        return [_beside(view, variant, other) for variant, other in pairs(view.variants)]
    cell, said = telling(view), []
    for variant, other in pairs(view.variants):
        found = None if cell is None else view.difference(variant, other, cell.name, view.main)
        if cell is not None and found is not None:
            said.append(f"At {cell_name(cell)}, {variant} is {difference_in_words(found, other, view.main)}.")
    return said


def pairs(variants: tuple[str, ...]) -> list[tuple[str, str]]:
    """(variant, other): all against the first, and the last against the rest."""
    first, last = variants[0], variants[-1]
    against_first = [(name, first) for name in variants[1:]]
    return against_first + [(last, other) for other in variants[1:-1]]


def _points(measure: str) -> str:
    return " points" if measure in MEASURES else ""
