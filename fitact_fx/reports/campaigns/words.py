"""Numbers and cells of a campaign as people read them, the same in the terminal, the page and the figures."""

from math import floor, isfinite, log10

from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.campaigns.estimates import Estimate
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.words import power
from fitact_fx.statistics import Interval

MEASURES = {"accuracy": "accuracy", "sdc1": "SDC-1", "sdc5": "SDC-5", "due": "DUE"}
NOTHING = "-"
COMMAND = "fitact-fx campaign"
PER = {part: f"{COMMAND} … --kind single --per {part}" for part in ("tensor", "bit", "site")}
PER["site"] += " --at '*'"
PER["pair"] = f"{COMMAND} … --kind exhaustive"


def measure_name(measure: str) -> str:
    """ "sdc1" -> "SDC-1"; a user's own metric is called as they call it."""
    return MEASURES.get(measure, measure)


def cell_name(condition: Condition) -> str:
    """ "1e-6" for a rate, else the campaign's own name."""
    whole = (condition.tensor, condition.bit, condition.site) == (None, None, None)
    if condition.site is not None and condition.bit is None:
        return condition.site
    return power(condition.rate) if condition.rate and whole else condition.name


def percent(value: float, like: float | None = None) -> str:
    """A share in per cent with one decimal, small ones with two digits: 0.123 -> "12.3", 0.000034 -> "0.0034".

    `like`: the value whose decimals it gets.
    """
    size = abs(value if like is None else like)
    if 0 < size < 1e-6:
        return power(100 * value) if value else "0"
    decimals = 1 if size >= 0.001 or not size else 1 - floor(log10(100 * size))
    shown = f"{100 * value:.{decimals}f}"
    return shown if float(shown) else shown.removeprefix("-")


def plain(value: float) -> str:
    """A number in the user's own unit."""
    return f"{value:.4g}"


def number(value: float | None, measure: str, like: float | None = None) -> str:
    """One value of a measure: shares in per cent, metrics as they are."""
    if value is None or not isfinite(value):
        return NOTHING
    return percent(value, like) if measure in MEASURES else plain(value)


def estimate(found: Estimate | None, measure: str, unit: str = "") -> str:
    """ "20.5 [18.1, 23.0]"; "none (< 3.0)" where no draw showed it; the mean alone where there is no interval.

    `unit` stands behind the mean: "20.5 % [18.1, 23.0]".
    """
    if found is None:
        return NOTHING
    if not isfinite(found.mean):
        return "not finite in some draws"
    if found.never:
        return f"none (< {percent(found.high)}{unit})"
    if found.alike:
        return f"{number(found.mean, measure)}{unit} (every draw)"
    if found.exact or not found.known:
        return f"{number(found.mean, measure)}{unit}"
    return _with_ends(found.mean, found.low, found.high, measure, unit)


def interval(found: Interval | None, measure: str = "accuracy") -> str:
    """The same for a plain interval."""
    if found is None:
        return NOTHING
    if not isfinite(found.low):
        return number(found.mean, measure)
    return _with_ends(found.mean, found.low, found.high, measure)


def _with_ends(mean: float, low: float, high: float, measure: str, unit: str = "") -> str:
    return f"{number(mean, measure)}{unit} [{number(low, measure, mean)}, {number(high, measure, mean)}]"


def signed(found: Interval | None, measure: str = "accuracy") -> str:
    """A difference: "+12.3 [+10.1, +14.5]"."""
    if found is None:
        return NOTHING
    mean, low, high = (_with_sign(value, measure, found.mean) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]" if isfinite(found.low) else mean


def verdict(found: Interval | None, measure: str) -> str:
    """What a difference to the reference says: "better", "worse", or that the draws cannot tell."""
    if found is None or not isfinite(found.low):
        return "too few draws"
    if found.low <= 0 <= found.high:
        return "not to be told apart"
    if measure not in MEASURES:
        return "higher" if found.mean > 0 else "lower"
    return "better" if (found.mean > 0) == (measure == "accuracy") else "worse"


def unit_of(measure: str) -> str:
    """ " %" for shares, nothing for metrics."""
    return " %" if measure in MEASURES else ""


def count(amount: int, word: str) -> str:
    """ "1 draw", "1,200 draws"."""
    return f"{amount:,} {word}{'' if amount == 1 else 's'}"


def listed(items: list[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def span(numbers: list[int]) -> str:
    """ "100", or "30 to 100" where they differ."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def duration(seconds: float) -> str:
    """ "45 s", "12.3 min", "4.1 h"."""
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.0f} {unit}" if size == 1 and seconds >= 10 else f"{seconds / size:.1f} {unit}"


def order_of_harm(view: View, cells: tuple[Condition, ...]) -> list[Condition]:
    """The cells that hurt most first: the least accuracy, or the most harm, of the variant that suffers most."""

    def hurt(cell: Condition) -> float:
        measure = "accuracy" if cell.rate is not None and view.labelled else view.harm
        means = [one.mean for name in view.variants if (one := view.estimate(name, cell, measure)) is not None]
        return max((1 - mean if measure == "accuracy" else mean for mean in means), default=-1.0)

    return sorted(cells, key=hurt, reverse=True)


def _with_sign(value: float, measure: str, like: float) -> str:
    shown = number(abs(value), measure, like)
    return f"{'+' if value > 0 else '-'}{shown}" if shown != NOTHING and float(shown) else shown
