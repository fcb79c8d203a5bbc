"""A campaign's cells as its reports look at them: what each is about, and what its trials say."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import inf, isfinite
from typing import Any

import numpy as np

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import FitactError
from fitact_fx.faults.formats import find_format
from fitact_fx.reports.campaigns.estimates import Estimate, Stratum, Values, enumerated, pooled, sampled
from fitact_fx.statistics import Interval, wilson

SHARES = ("accuracy", "sdc1", "sdc5", "due")
HARMS = ("sdc1", "sdc5", "due")


class View:
    """One result, sorted by what its cells are about. Estimates are computed once: a bootstrap is dear."""

    def __init__(self, result: CampaignResult) -> None:
        self.result = result
        self.settings: Any = result.settings
        self.variants = tuple(result.variants)
        self._estimates: dict[tuple[str, str, str], Estimate | None] = {}
        self._differences: dict[tuple[str, str, str, str], Interval | None] = {}
        self._stopped: dict[tuple[str, str], bool] = {}
        self._parts: dict[str, list[Condition]] = {}

    @cached_property
    def rates(self) -> tuple[Condition, ...]:
        """Cells at a bit error rate over everything that is targeted, lowest rate first."""
        found = [one for one in self.result.conditions if one.rate is not None and not _about_a_part(one)]
        return tuple(sorted(found, key=lambda one: one.rate or 0.0))

    @cached_property
    def tensors(self) -> tuple[Condition, ...]:
        """Cells of one tensor each, in network order; put together from those per tensor and bit if need be."""
        own = self._that(lambda one: one.tensor is not None and one.bit is None and one.site is None)
        return own or self._grouped(lambda one: one.tensor if one.site is None else None)

    @cached_property
    def bits(self) -> tuple[Condition, ...]:
        """Cells of one bit each, all tensors; put together from those per tensor and bit if need be."""
        own = self._that(lambda one: one.bit is not None and one.tensor is None and one.site is None)
        return own or self._grouped(lambda one: one.bit)

    @cached_property
    def sites(self) -> tuple[Condition, ...]:
        """Cells of one site each."""
        return self._that(lambda one: one.site is not None and one.bit is None)

    @cached_property
    def pairs(self) -> tuple[Condition, ...]:
        """Cells of one bit of one tensor or site each."""
        return self._that(lambda one: one.bit is not None and (one.tensor or one.site) is not None)

    @cached_property
    def strata(self) -> tuple[Condition, ...]:
        """Cells of single faults that together are everything that was targeted; none in a rate sweep."""
        whole = self._that(lambda one: not _about_a_part(one))
        single = next((cells for cells in (whole, self.pairs, self.sites, self.tensors, self.bits) if cells), ())
        return () if any(one.rate is not None for one in single) else single

    @property
    def one_by_one(self) -> bool:
        """Whether each trial has a single fault."""
        return self.settings["kind"] in ("single faults", "exhaustive")

    @cached_property
    def rows(self) -> dict[tuple[str, str], list[Row]]:
        """(variant, cell) -> its trials."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.result.rows:
            found.setdefault((row.variant, row.cell), []).append(row)
        return found

    @property
    def reference(self) -> str:
        """The variant that the others are compared with: the first."""
        return self.variants[0]

    @cached_property
    def labelled(self) -> bool:
        """Whether outputs were class scores with labels, so that there is an accuracy."""
        return any(row.accuracy is not None for row in self.result.rows)

    @property
    def main(self) -> str:
        """What this campaign is about: accuracy where there is one, else the first metric, else SDC-1, else DUE."""
        return "accuracy" if self.labelled else next(iter(self.metrics), self.harm)

    @property
    def harm(self) -> str:
        """What maps of vulnerability show: SDC-1, or DUE where outputs are no class scores."""
        return "sdc1" if any(row.sdc1 is not None for row in self.result.rows) else "due"

    @cached_property
    def harms(self) -> tuple[str, ...]:
        """Those of SDC-1, SDC-5 and DUE that were measured."""
        return tuple(one for one in HARMS if any(getattr(row, one) is not None for row in self.result.rows)) or ("due",)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The user's own metrics."""
        return self.result.metrics

    @property
    def confidence(self) -> float:
        """Of the intervals, between 0 and 1."""
        return self.result.confidence

    @cached_property
    def fields(self) -> dict[str, range]:
        """Part of a word -> its bits; empty for a format that this version does not know."""
        try:
            return dict(find_format(self.settings["format"]).fields)
        except FitactError:
            return {}

    def field(self, bit: int) -> str:
        """The part of the word that a bit is in."""
        return next((name for name, bits in self.fields.items() if bit in bits), "")

    def clean(self, variant: str, measure: str) -> float | None:
        """What was measured before any fault."""
        value = self.settings["variants"][variant]["clean"].get(measure)
        return None if value is None else float(value)

    def trials(self, variant: str, cell: str) -> int:
        """How many there are now."""
        return len(self.rows.get((variant, cell), ()))

    def values(self, variant: str, cell: str, measure: str) -> Values:
        """One per trial that has a value, in trial order."""
        return np.asarray(self.result.values(variant, cell, measure), dtype=np.float64)

    def estimate(self, variant: str, condition: Condition, measure: str) -> Estimate | None:
        """The mean with its interval; None where no trial has a value."""
        key = (variant, condition.name, measure)
        if key not in self._estimates:
            interval = partial(self.result.interval, variant, condition.name, measure)
            self._estimates[key] = self._estimated(variant, condition, measure, interval)
        return self._estimates[key]

    def glance(self, variant: str, condition: Condition, measure: str) -> Estimate | None:
        """The same without an interval, which costs next to nothing: for the long tail of a long table."""
        found = self._estimated(variant, condition, measure, _unknown)
        return found if found is None or found.exact else replace(found, low=-inf, high=inf, never=False, alike=False)

    def _estimated(
        self, variant: str, condition: Condition, measure: str, interval: Callable[[], Interval]
    ) -> Estimate | None:
        if condition.name in self._parts:
            return self.pooled(variant, self._parts[condition.name], measure)
        values = self.values(variant, condition.name, measure)
        if not len(values):
            return None
        if self.settings["kind"] == "exhaustive":
            return enumerated(values, condition.population)
        return sampled(values, interval, self.confidence, event=measure in HARMS)

    def pooled(self, variant: str, cells: Sequence[Condition], measure: str) -> Estimate | None:
        """Over cells that are strata of one memory, each weighted with its population; None where none has a value."""
        if len(cells) == 1:
            return self.estimate(variant, cells[0], measure)
        strata = [
            Stratum(cell.population, found, self.values(variant, cell.name, measure))
            for cell in cells
            if (found := self._estimated(variant, cell, measure, _unneeded)) is not None
        ]
        return pooled(strata, self.confidence)

    def worst(self, variant: str, cell: str, measure: str) -> float:
        """Of the trials: the lowest accuracy, the highest share of harm."""
        values = self.values(variant, cell, measure)
        return float(values.max() if measure in HARMS else values.min())

    def worst_row(self, variant: str, cell: str) -> Row | None:
        """The trial that hurt most."""
        rows = self.rows.get((variant, cell), [])
        return min(rows, key=_harm, default=None)

    def difference(self, variant: str, other: str, cell: str, measure: str) -> Interval | None:
        """`variant` minus `other` on the same faults; None where they have no trial in common."""
        key = (variant, other, cell, measure)
        if key not in self._differences:
            paired = self.common(variant, other, cell, measure) > 0
            finite = all(np.isfinite(self.values(one, cell, measure)).all() for one in (variant, other))
            self._differences[key] = (
                self.result.difference(variant, other, cell, measure) if paired and finite else None
            )
        return self._differences[key]

    def common(self, variant: str, other: str, cell: str, measure: str) -> int:
        """How many trials both have."""
        here, there = (_with_value(self.rows.get((one, cell), []), measure) for one in (variant, other))
        return len(here & there)

    def stopped(self, variant: str, cell: str) -> bool:
        """Whether it knew enough before its last trial."""
        key = (variant, cell)
        if key not in self._stopped:
            self._stopped[key] = self.result.stopped(variant, cell)
        return self._stopped[key]

    def any_due(self, variant: str, cell: str) -> Interval | None:
        """The share of draws in which NaN or Inf was seen at all, with Wilson's interval."""
        rows = self.rows.get((variant, cell), [])
        return wilson(sum(row.due > 0 for row in rows), len(rows), self.confidence) if rows else None

    def _grouped(self, part: Callable[[Condition], str | int | None]) -> tuple[Condition, ...]:
        """The cells per tensor and bit, put together to one per tensor, or one per bit."""
        groups: dict[str | int, list[Condition]] = {}
        for cell in self.pairs:
            key = part(cell)
            if key is not None:
                groups.setdefault(key, []).append(cell)
        return tuple(self._group(key, cells) for key, cells in groups.items())

    def _group(self, key: str | int, cells: list[Condition]) -> Condition:
        name = key if isinstance(key, str) else f"bit {key}"
        self._parts[name] = cells
        trials, population = sum(one.trials for one in cells), sum(one.population for one in cells)
        about: dict[str, Any] = {"tensor": key} if isinstance(key, str) else {"bit": key}
        return Condition(name, trials, population, **about)

    def _that(self, wanted: Callable[[Condition], bool]) -> tuple[Condition, ...]:
        return tuple(one for one in self.result.conditions if wanted(one))


def _unknown() -> Interval:
    return Interval(0.0, -inf, inf)


def _unneeded() -> Interval:
    """A pooled mean needs the spread of its strata, and not their intervals."""
    return Interval(0.0, 0.0, 1.0)


def value_of(row: Row, measure: str) -> float | None:
    """What a trial measured, None where it has nothing."""
    value = getattr(row, measure) if measure in SHARES else row.metrics.get(measure)
    return None if value is None or not isfinite(value) else float(value)


def _with_value(rows: Sequence[Row], measure: str) -> set[int]:
    return {row.trial for row in rows if value_of(row, measure) is not None}


def _harm(row: Row) -> tuple[float, float, int]:
    """Smallest for the trial that hurt most; the first of equal ones."""
    accuracy = row.accuracy if row.accuracy is not None else 1.0
    return accuracy, -(row.sdc1 or 0.0) - row.due, row.trial


def _about_a_part(condition: Condition) -> bool:
    return (condition.tensor, condition.bit, condition.site) != (None, None, None)
