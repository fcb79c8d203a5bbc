"""Protections beside each other: accuracy under faults and what each costs, as a table, sentences and JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.words import power, share, size
from fitact_fx.statistics import Interval


@dataclass(frozen=True)
class Comparison:
    """A rate sweep. Its first variant is the unprotected model, its last the one the reader is shown.

    `bound_bytes`: variant -> memory of its bounds; `run_times`: variant -> seconds for one compiled run,
    empty where that was not measured.
    """

    campaign: CampaignResult
    bound_bytes: Mapping[str, int]
    run_times: Mapping[str, float]

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names, in the order of the table."""
        return self.campaign.variants

    @property
    def rates(self) -> Mapping[str, float]:
        """Cell -> bit error rate, in the order of the campaign."""
        return {one.name: _rate(one) for one in self.campaign.conditions}

    def clean(self, variant: str) -> float:
        """Its accuracy without faults, a share."""
        return float(self.campaign.settings["variants"][variant]["clean"]["accuracy"])

    def relative_time(self, variant: str) -> float | None:
        """The compiled run time as a multiple of the unprotected model's."""
        if not self.run_times:
            return None
        return self.run_times[variant] / self.run_times[self.variants[0]]

    def table(self) -> str:
        """Accuracies in per cent with 95 % intervals over the draws."""
        headers = ["protection", "clean", *map(power, self.rates.values()), "bounds", "time"]
        rows = [self._row(variant) for variant in self.variants]
        align = ("left", *("right" for _ in headers[1:]))
        return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)

    def _row(self, variant: str) -> list[str]:
        time = self.relative_time(variant)
        means = [_with_interval(self.campaign.interval(variant, cell)) for cell in self.rates]
        bounds = size(self.bound_bytes[variant]) if self.bound_bytes[variant] else "-"
        return [variant, share(self.clean(variant)), *means, bounds, "-" if time is None else f"{time:.2f}x"]

    def sentences(self) -> str:
        """What there is to see: at the rate where the last variant gains most, where it falls behind, its price."""
        found, plain, *others, best = self.campaign, *self.variants
        most = max(self.rates, key=lambda cell: found.difference(best, plain, cell).mean)
        kept = {variant: f"{share(found.interval(variant, most).mean)} %" for variant in self.variants}
        protected = ", ".join(f"{kept[variant]} with {variant}" for variant in (*others, best))
        unprotected = f"{kept[plain]} of the answers are right without protection"
        seen = [f"With one bit in {1 / self.rates[most]:,.0f} flipped, {unprotected}; {protected}."]
        if others:
            compared = [_compared(other, found.difference(best, other, most)) for other in others]
            seen.append(f"On the same draws, {best} is {' and '.join(compared)}.")
        behind = [
            f"{_compared(other, difference)} at {power(rate)}"
            for cell, rate in self.rates.items()
            for other in others
            if cell != most and (difference := found.difference(best, other, cell)).high < 0
        ]
        if behind:
            seen.append(f"But it is {' and '.join(behind)}.")
        return " ".join([*seen, self._price(best)])

    def _price(self, best: str) -> str:
        drop = share(self.clean(self.variants[0]) - self.clean(best))
        parts = [f"{drop} points of clean accuracy" if float(drop) > 0 else "no clean accuracy"]
        parts.append(f"{size(self.bound_bytes[best])} for the bounds")
        time = self.relative_time(best)
        if time is not None:
            parts.append(f"{100 * (time - 1):.0f} % more run time" if time >= 1.01 else "no run time")
        return f"It costs {', '.join(parts[:-1])} and {parts[-1]}."

    def as_json(self) -> dict[str, Any]:
        """Everything, with the accuracy of each single draw."""
        return {variant: self._variant_json(variant) for variant in self.variants}

    def _variant_json(self, variant: str) -> dict[str, Any]:
        rates = []
        for cell, rate in self.rates.items():
            interval = self.campaign.interval(variant, cell)
            rates.append(
                {
                    "rate": rate,
                    "mean": interval.mean,
                    # JSON has no infinity: one draw has no interval.
                    "interval": [interval.low, interval.high] if abs(interval.low) <= 1 else None,
                    "worst": self.campaign.worst(variant, cell),
                    "draws": self.campaign.values(variant, cell).tolist(),
                }
            )
        return {
            "clean": self.clean(variant),
            "faulty": rates,
            "bound_bytes": self.bound_bytes[variant],
            "run_time_s": self.run_times.get(variant),
            "relative_run_time": self.relative_time(variant),
        }


def _rate(condition: Condition) -> float:
    assert condition.rate is not None, "a comparison is of a rate sweep"
    return condition.rate


def _with_interval(interval: Interval) -> str:
    if abs(interval.low) > 1:  # infinite: a single draw says nothing about the spread
        return share(interval.mean)
    return f"{share(interval.mean)} [{share(interval.low)}, {share(interval.high)}]"


def _compared(other: str, difference: Interval) -> str:
    """How much better or worse than `other`, if the draws can tell."""
    if difference.low <= 0 <= difference.high:
        return f"not to be told apart from {other}"
    word, sign = ("better", 1) if difference.mean > 0 else ("worse", -1)
    low, high = sorted((sign * difference.low, sign * difference.high))
    points = share(sign * difference.mean)
    return f"{points} points {word} than {other} (95 % interval {share(low)} to {share(high)})"
