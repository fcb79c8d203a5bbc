"""A campaign as a table for people: variants against conditions, or one line for each where there are many."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from fitact_fx.campaigns.rows import Condition
from fitact_fx.statistics import Interval

WIDEST = 8
"""Conditions that fit beside each other on a screen."""

_WORDS = {"accuracy": "accuracy", "sdc1": "SDC-1", "sdc5": "SDC-5", "due": "DUE"}
_NOTHING = "-"


class Estimates(Protocol):
    """What a table is made of; `CampaignResult` has it."""

    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def conditions(self) -> tuple[Condition, ...]: ...
    @property
    def variants(self) -> tuple[str, ...]: ...
    @property
    def confidence(self) -> float: ...
    def values(self, variant: str, cell: str, measure: str = ...) -> NDArray[np.float64]: ...
    def interval(self, variant: str, cell: str, measure: str = ...) -> Interval: ...
    def worst(self, variant: str, cell: str, measure: str = ...) -> float: ...
    def never(self, variant: str, cell: str, measure: str = ...) -> float | None: ...
    def share_of_draws(self, variant: str, cell: str, event: str = ...) -> Interval: ...


def table(found: Estimates, measure: str) -> str:
    """A row per variant, or per condition and variant where there are more than `WIDEST` conditions."""
    wide = len(found.conditions) <= WIDEST
    headers, rows = _wide(found, measure) if wide else _long(found, measure)
    texts = 1 if wide else 2
    align = [*["left"] * texts, *["right"] * (len(headers) - texts)]
    shown = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
    return f"{shown}\n{_sentence(found, measure)}{_memory(found)}"


def _wide(found: Estimates, measure: str) -> tuple[list[str], list[list[str]]]:
    headers = ["variant", "clean", *map(_name, found.conditions)]
    rows = [
        [name, _clean(found, name, measure), *(_estimate(found, name, one.name, measure) for one in found.conditions)]
        for name in found.variants
    ]
    return headers, rows


def _long(found: Estimates, measure: str) -> tuple[list[str], list[list[str]]]:
    headers = ["condition", "variant", "draws", _WORDS.get(measure, measure), "worst", "% with SDC", "% with DUE"]
    rows = []
    for condition in found.conditions:
        for variant in found.variants:
            key = variant, condition.name
            values = found.values(*key, measure)
            worst = _number(found.worst(*key, measure), measure) if len(values) else _NOTHING
            events = (_share_of_draws(found, *key, event) for event in ("sdc1", "due"))
            draws = str(len(found.values(*key, "due")))
            rows.append([_name(condition), variant, draws, _estimate(found, *key, measure), worst, *events])
    return headers, rows


def _estimate(found: Estimates, variant: str, cell: str, measure: str) -> str:
    """`91.2 [90.1, 92.3]`; `none (< 3.0)` where no draw showed any; the mean alone where there is no interval."""
    values = found.values(variant, cell, measure)
    if not len(values) or not np.isfinite(values).all():
        return _NOTHING
    below = found.never(variant, cell, measure) if measure in ("sdc1", "sdc5", "due") else None
    return _none_seen(below) if below is not None else _interval(found.interval(variant, cell, measure), measure)


def _share_of_draws(found: Estimates, variant: str, cell: str, event: str) -> str:
    if not len(found.values(variant, cell, event)):
        return _NOTHING
    below = found.never(variant, cell, event)
    return _none_seen(below) if below is not None else _interval(found.share_of_draws(variant, cell, event), event)


def _none_seen(below: float) -> str:
    return f"none (< {100 * below:.3g})"


def _interval(found: Interval, measure: str) -> str:
    mean, low, high = (_number(value, measure) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]" if isfinite(found.low) else mean


def _clean(found: Estimates, variant: str, measure: str) -> str:
    value = found.settings["variants"][variant]["clean"].get(measure)
    return _NOTHING if value is None else _number(value, measure)


def _number(value: float, measure: str) -> str:
    return f"{100 * value:.1f}" if measure in _WORDS else f"{value:.4g}"


def _name(condition: Condition) -> str:
    """A rate as people write it, 1e-6, and the campaign's own name for anything else."""
    if condition.rate is None or (condition.tensor, condition.bit, condition.site) != (None, None, None):
        return condition.name
    digits, exponent = f"{condition.rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _sentence(found: Estimates, measure: str) -> str:
    numbers = [len(found.values(name, one.name, "due")) for name in found.variants for one in found.conditions]
    unit = " in %" if measure in _WORDS else ""
    interval = f"mean and {100 * found.confidence:g} % interval"
    return f"{_WORDS.get(measure, measure)}{unit}: {interval} over {_span(numbers)} draws each"


def _memory(found: Estimates) -> str:
    """A line on what the protection of each variant takes, which belongs next to what it does."""
    variants = found.settings["variants"]
    taken = {name: variants[name].get("bound_bytes", 0) + variants[name].get("guard_bytes", 0) for name in variants}
    told = ", ".join(f"{name} {taken[name]:,}" for name in found.variants if taken[name])
    return f"\nbytes of bounds and guards: {told}" if told else ""


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
