"""A campaign's rows by variant, cell and measure, and what is said where there are none."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import CampaignError, close_to

COLUMNS = ("accuracy", "sdc1", "sdc5", "due", "faults", "seconds")
"""The measures that every campaign has, beside the user's metrics."""


@dataclass(frozen=True, eq=False)
class Cells:
    """`rows` in trial order. CampaignError for a variant, cell or measure that is not in the campaign."""

    variants: tuple[str, ...]
    conditions: tuple[Condition, ...]
    all_rows: tuple[Row, ...]
    metrics: tuple[str, ...]

    def condition(self, cell: str) -> Condition:
        """The one of that name."""
        _require("cell", cell, self._conditions)
        return self._conditions[cell]

    def rows(self, variant: str, cell: str) -> list[Row]:
        """In trial order."""
        _require("variant", variant, self.variants)
        _require("cell", cell, self._conditions)
        return self._rows.get((variant, cell), [])

    def by_trial(self, variant: str, cell: str, measure: str) -> dict[int, float]:
        """Trial -> value, for the trials that have one."""
        _require("measure", measure, (*COLUMNS, *self.metrics))
        found = (
            (row.trial, getattr(row, measure) if measure in COLUMNS else row.metrics.get(measure))
            for row in self.rows(variant, cell)
        )
        return {trial: float(value) for trial, value in found if value is not None}

    def some(self, variant: str, cell: str, measure: str) -> NDArray[np.float64]:
        """The values, one at least: CampaignError if there are none, which says why."""
        found, rows = self.by_trial(variant, cell, measure), self.rows(variant, cell)
        if found:
            return np.array(list(found.values()), dtype=np.float64)
        if not rows:
            raise CampaignError(f"no trial of {variant!r} at {cell!r} has run yet;\n  let the campaign run on")
        failed = next((row.error for row in rows if row.error is not None), "it gave no value")
        # The columns that can be empty are empty for one reason only.
        why = "the outputs are no class scores with labels" if measure in COLUMNS else failed
        raise CampaignError(
            f"none of the {len(rows)} trials of {variant!r} at {cell!r} has {measure}: {why};\n"
            "  ask for another measure, such as 'due'"
        )

    @cached_property
    def _conditions(self) -> dict[str, Condition]:
        return {condition.name: condition for condition in self.conditions}

    @cached_property
    def _rows(self) -> dict[tuple[str, str], list[Row]]:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.all_rows:
            found.setdefault((row.variant, row.cell), []).append(row)
        return found


def _require(word: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        shown = close_to(name, names) or f"; there are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        raise CampaignError(f"this campaign has no {word} {name!r}{shown}")
