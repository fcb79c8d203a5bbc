"""Several campaigns beside each other, and whether their draws are pairs: `fitact-fx compare A.db B.db`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from tabulate import tabulate

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import CampaignError
from fitact_fx.reports.campaigns.estimates import Estimate
from fitact_fx.reports.campaigns.summary import difference_in_words
from fitact_fx.reports.campaigns.view import View, value_of
from fitact_fx.reports.campaigns.words import NOTHING, cell_name, count, estimate, listed, measure_name
from fitact_fx.statistics import Interval, paired_difference

# What decides which faults a trial has, and what they are measured on.
_SAME = ("kind", "fault", "effect", "format", "targets", "at", "where", "persistence", "seed", "data")


@dataclass(frozen=True)
class Column:
    """One variant of one campaign."""

    store: str
    variant: str
    view: View

    @property
    def name(self) -> str:
        return f"{self.store}: {self.variant}"


def compared(results: Mapping[str, CampaignResult], measure: str | None = None) -> str:
    """A table with a column per campaign and variant, and the paired differences, or why the draws are no pairs.

    `results`: what to call each -> its result. `measure`: the first campaign's own unless given. CampaignError for
    fewer than two results.
    """
    columns, measure = _columns(results), measure or _measure(results)
    parts = [f"{measure_name(measure)} of {len(results)} campaigns", _table(columns, measure)]
    for name, reasons in _apart(results).items():
        first = next(iter(results))
        if reasons:
            parts.append(f"{name} is not paired with {first}: {'; '.join(reasons)}. Their draws cannot be subtracted.")
    said = list(_sentences(columns, results, measure))
    if said:
        parts.append("\n".join(["Paired differences, on the same faults:", *(f"  {one}" for one in said)]))
    return "\n\n".join(parts)


def compared_json(results: Mapping[str, CampaignResult], measure: str | None = None) -> dict[str, Any]:
    """The same for programs; shares between 0 and 1."""
    columns, measure = _columns(results), measure or _measure(results)
    means = [
        {"store": one.store, "variant": one.variant, "condition": cell.name, **_estimate_json(found)}
        for one in columns
        for cell in one.view.result.conditions
        if (found := one.view.estimate(one.variant, cell, measure)) is not None
    ]
    differences = [
        {"condition": cell.name, "of": one.name, "against": columns[0].name, "pairs": pairs, **_interval_json(found)}
        for one, cell, found, pairs in _differences(columns, results, measure)
    ]
    unpaired = {name: reasons for name, reasons in _apart(results).items() if reasons}
    return {"measure": measure, "means": means, "differences": differences, "unpaired": unpaired}


def _columns(results: Mapping[str, CampaignResult]) -> list[Column]:
    if len(results) < 2:
        raise CampaignError(f"a comparison needs two campaigns or more; got {len(results)}")
    views = {name: View(result) for name, result in results.items()}
    return [Column(name, variant, view) for name, view in views.items() for variant in view.variants]


def _measure(results: Mapping[str, CampaignResult]) -> str:
    return View(next(iter(results.values()))).main


def _table(columns: list[Column], measure: str) -> str:
    cells = {cell.name: cell for one in columns for cell in one.view.result.conditions}
    rows = [[_bare(cell), *(_shown(one, cell, measure) for one in columns)] for cell in cells.values()]
    headers = ["condition", *(one.name for one in columns)]
    align = ("left", *("right" for _ in columns))
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _bare(cell: Condition) -> str:
    return cell_name(cell)


def _shown(column: Column, cell: Condition, measure: str) -> str:
    own = {one.name: one for one in column.view.result.conditions}
    has = cell.name in own and measure in ("accuracy", "sdc1", "sdc5", "due", *column.view.metrics)
    return estimate(column.view.estimate(column.variant, own[cell.name], measure), measure) if has else NOTHING


def _apart(results: Mapping[str, CampaignResult]) -> dict[str, list[str]]:
    """Each but the first -> why its draws are not those of the first; empty where they are."""
    (_, first), *others = results.items()
    return {name: _reasons(first, other) for name, other in others}


def _reasons(first: CampaignResult, other: CampaignResult) -> list[str]:
    here, there = first.settings, other.settings
    found = [
        f"{name} is {_worded(there.get(name))} and not {_worded(here.get(name))}"
        for name in _SAME
        if here.get(name) != there.get(name)
    ]
    ours, theirs = ({_key(one) for one in result.conditions} for result in (first, other))
    return found if ours & theirs else [*found, "they have no condition in common"]


def _key(cell: Condition) -> tuple[object, ...]:
    """What is the same about a cell in two campaigns. A single fault is drawn from all places, a rate is not."""
    population = None if cell.rate is not None else cell.population
    return cell.name, cell.rate, cell.tensor, cell.bit, cell.site, population


def _worded(value: object) -> str:
    if isinstance(value, list):
        return listed([str(one) for one in value])
    return repr(value) if isinstance(value, str) else str(value)


def _differences(
    columns: list[Column], results: Mapping[str, CampaignResult], measure: str
) -> Iterator[tuple[Column, Condition, Interval, int]]:
    """Every later column against the first, where they are pairs, with the number of pairs."""
    apart, (first, *others) = _apart(results), columns
    for column in others:
        if apart.get(column.store):
            continue
        theirs = {_key(one) for one in column.view.result.conditions}
        for cell in first.view.result.conditions:
            here, there = (_by_trial(one, cell, measure) for one in (column, first))
            common = sorted(here.keys() & there.keys())
            if _key(cell) in theirs and common:
                ours, reference = [here[trial] for trial in common], [there[trial] for trial in common]
                yield column, cell, paired_difference(ours, reference, first.view.confidence), len(common)


def _by_trial(column: Column, cell: Condition, measure: str) -> dict[int, float]:
    rows = column.view.rows.get((column.variant, cell.name), [])
    return {row.trial: value for row in rows if (value := value_of(row, measure)) is not None}


def _sentences(columns: list[Column], results: Mapping[str, CampaignResult], measure: str) -> Iterator[str]:
    for column, cell, found, pairs in _differences(columns, results, measure):
        said = difference_in_words(found, columns[0].name, measure)
        yield f"{cell_name(cell)}, {count(pairs, 'pair')}: {column.name} is {said}"


def _estimate_json(found: Estimate) -> dict[str, Any]:
    mean = found.mean if isfinite(found.mean) else None  # JSON has no NaN
    return {"mean": mean, "interval": [found.low, found.high] if found.known else None, "trials": found.trials}


def _interval_json(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "interval": [found.low, found.high] if isfinite(found.low) else None}
