"""What a campaign found: its rows, and estimates from them. The unit is the fault draw."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fitact_fx.campaigns import exporting, tabulating
from fitact_fx.campaigns.cells import Cells
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.errors import CampaignError, FitactError
from fitact_fx.statistics import (
    Interval,
    area_under,
    bootstrap_mean,
    paired_difference,
    rule_of_three,
    stopping_interval,
    wilson,
)

if TYPE_CHECKING:
    from pandas import DataFrame

_WORSE_IF_HIGH = ("sdc1", "sdc5", "due", "faults", "seconds")


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """`rows` come by condition, trial and variant; `settings`, `conditions` and `sessions` are what the store has.

    A `measure` is "accuracy", "sdc1", "sdc5", "due", "faults", "seconds" or one of the user's metrics. Every method
    raises CampaignError for a variant, cell or measure that the campaign does not have.
    """

    settings: Mapping[str, Any]
    conditions: tuple[Condition, ...]
    rows: tuple[Row, ...]
    sessions: tuple[Mapping[str, Any], ...]
    # A bootstrap is dear, and a report asks for the same interval several times.
    _intervals: dict[tuple[str, str, str], Interval] = field(default_factory=dict, init=False, repr=False)

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names; the first is the one that the others are compared with."""
        return tuple(self.settings["variants"])

    @property
    def confidence(self) -> float:
        """Of every interval, between 0 and 1."""
        return float(self.settings["confidence"])

    @property
    def measure(self) -> str:
        """What this campaign is about, "accuracy" unless it was told."""
        return str(self.settings.get("measure") or "accuracy")

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The user's own."""
        return tuple(dict.fromkeys((*self.settings["metrics"], *(name for row in self.rows for name in row.metrics))))

    @property
    def errors(self) -> tuple[tuple[str, str, int, str], ...]:
        """(variant, cell, trial, message) of each trial in which the network raised, or a metric, or gave no number."""
        return tuple((row.variant, row.cell, row.trial, row.error) for row in self.rows if row.error is not None)

    def values(self, variant: str, cell: str, measure: str = "accuracy") -> NDArray[np.float64]:
        """In trial order, (trials,), without the trials that have none."""
        return np.array(list(self._cells.by_trial(variant, cell, measure).values()), dtype=np.float64)

    @property
    def _hits_each_place_once(self) -> bool:
        return (
            self.settings["kind"] in ("exhaustive", "single faults") and self.settings.get("persistence") != "transient"
        )

    def interval(self, variant: str, cell: str, measure: str = "accuracy") -> Interval:
        """The mean over the draws and its interval, see `bootstrap_mean`.

        Where all values are the same share, and in a campaign that stops by itself, it is the `stopping_interval`,
        which reaches as far as what no draw has shown. It has no width where every place of the cell was hit: then
        the mean is no estimate.
        """
        key = (variant, cell, measure)
        if key not in self._intervals:
            values = self._cells.some(*key)
            exact = len(values) == self._cells.condition(cell).population and self._hits_each_place_once
            with _about(f"{measure} of {variant!r} at {cell!r}"):
                alike = len(values) > 1 and bool((values == values[0]).all()) and 0 <= values[0] <= 1
                guarded = alike or self.settings.get("until") is not None
                found = (stopping_interval if guarded else bootstrap_mean)(values, self.confidence)
            self._intervals[key] = Interval(found.mean, found.mean, found.mean) if exact else found
        return self._intervals[key]

    def worst(self, variant: str, cell: str, measure: str = "accuracy") -> float:
        """Of the draw that hurt most: the highest SDC or DUE, the lowest of accuracy and of a metric of the user's."""
        values = self._cells.some(variant, cell, measure)
        return float(values.max() if measure in _WORSE_IF_HIGH else values.min())

    def difference(self, variant: str, other: str, cell: str, measure: str = "accuracy") -> Interval:
        """How much higher `variant` lies than `other`, over the trials that both have, with its interval."""
        here, there = self._common((variant, other), (cell,), measure)
        with _about(f"{measure} of {variant!r} and {other!r} at {cell!r}"):
            return paired_difference(here[:, 0], there[:, 0], self.confidence)

    def area(self, variant: str, measure: str = "accuracy") -> Interval:
        """The mean over log10 of the rates, one area per trial that all rates have. See `area_under`."""
        (areas,) = self._areas((variant,), measure)
        with _about(f"the area under {measure} of {variant!r}"):
            return bootstrap_mean(areas, self.confidence)

    def area_difference(self, variant: str, other: str, measure: str = "accuracy") -> Interval:
        """How much larger the area of `variant` is, over the trials that both have at all rates."""
        here, there = self._areas((variant, other), measure)
        with _about(f"the areas under {measure} of {variant!r} and {other!r}"):
            return paired_difference(here, there, self.confidence)

    def never(self, variant: str, cell: str, measure: str = "sdc1") -> float | None:
        """If no draw showed any: what the share of draws that do stays below all the same. None if one did."""
        values = self._cells.some(variant, cell, measure)
        return None if values.any() else rule_of_three(len(values), self.confidence)

    def share_of_draws(self, variant: str, cell: str, event: str = "sdc1") -> Interval:
        """The share of draws in which `event` was seen at all, with Wilson's interval."""
        values = self._cells.some(variant, cell, event)
        return wilson(int(np.count_nonzero(values > 0)), len(values), self.confidence)

    def stopped(self, variant: str, cell: str) -> bool:
        """Whether the interval was narrow enough, `until`, before all trials had run."""
        until, most = self.settings["until"], self._cells.condition(cell).trials
        done = len(self._cells.rows(variant, cell))
        values = [value for value in self.values(variant, cell, self.measure) if isfinite(value)]
        if until is None or not min(self.settings["minimum"], most) <= done < most or not values:
            return False
        return StopRule(float(until), int(self.settings["minimum"]), self.measure, self.confidence).is_met(values)

    def table(self, measure: str | None = None) -> str:
        """For people: of each variant and cell the mean with its interval, shares in per cent."""
        return tabulating.table(self, measure or self.measure)

    def to_pandas(self) -> "DataFrame":
        """One line per row: what it is about, what was measured, how. Missing values are NaN or NA."""
        return exporting.frame(self.conditions, self.rows, self.metrics)

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain JSON values; "NaN", "Infinity" and "-Infinity" are text, as JSON has no such numbers."""
        return exporting.as_json(self.settings, self.conditions, self.sessions, self.rows)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as .csv or .parquet, or everything as .json: whole, or `path` stays as it was.

        CampaignError for another ending, a path that cannot be written, and .parquet without pyarrow.
        """
        exporting.export(path, self.to_pandas, self.as_json)

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.variants, self.conditions, self.rows, self.metrics)

    def _common(self, variants: Sequence[str], cells: Sequence[str], measure: str) -> list[NDArray[np.float64]]:
        """For each variant (trials, cells): the values of the trials that all variants have at all cells."""
        found = [[self._cells.by_trial(variant, cell, measure) for cell in cells] for variant in variants]
        common = sorted(set.intersection(*(set(each) for of_variant in found for each in of_variant)))
        if not common:
            raise CampaignError(
                f"no trial has {measure} of {' and '.join(map(repr, variants))} at {' and '.join(cells)};\n"
                "  let the campaign run on, or ask for another measure"
            )
        return [np.array([[each[trial] for each in of_variant] for trial in common]) for of_variant in found]

    def _areas(self, variants: Sequence[str], measure: str) -> list[list[float]]:
        """For each variant the areas of the trials that all variants have at all rates."""
        rates = {
            one.name: one.rate
            for one in self.conditions
            if one.rate is not None and (one.tensor, one.bit, one.site) == (None, None, None)
        }
        if not rates:
            raise CampaignError("an area is over bit error rates, and this campaign has none;\n  use a rate sweep")
        curves = self._common(variants, list(rates), measure)
        with _about(f"the area under {measure}"):
            return [[area_under(list(rates.values()), curve) for curve in of_variant] for of_variant in curves]


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Statistics know numbers only; this says which."""
    try:
        yield
    except FitactError as cause:
        raise CampaignError(f"{what}: {cause}") from cause
