"""Protections beside each other: accuracy under faults and what each costs, as a table, sentences and JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from fitact_fx.campaigns.trials import Accuracies
from fitact_fx.reports.words import power, share, size
from fitact_fx.statistics import Interval


@dataclass(frozen=True)
class Comparison:
    """Variants of one model. The first variant is the unprotected model, the last the one the reader is shown.

    `bound_bytes`: variant -> memory of its bounds; `run_times`: variant -> seconds for one compiled run,
    empty where that was not measured.
    """

    accuracies: Accuracies
    bound_bytes: Mapping[str, int]
    run_times: Mapping[str, float]

    @property
    def variants(self) -> tuple[str, ...]:
        """Their names, in the order of the table."""
        return tuple(self.accuracies.clean)

    def relative_time(self, variant: str) -> float | None:
        """The compiled run time as a multiple of the unprotected model's."""
        if not self.run_times:
            return None
        return self.run_times[variant] / self.run_times[self.variants[0]]

    def table(self) -> str:
        """Accuracies in per cent with 95 % intervals over the draws."""
        headers = ["protection", "clean", *map(power, self.accuracies.rates), "bounds", "time"]
        rows = [self._row(variant) for variant in self.variants]
        align = ("left", *("right" for _ in headers[1:]))
        return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)

    def _row(self, variant: str) -> list[str]:
        found = self.accuracies
        time = self.relative_time(variant)
        means = [_with_interval(found.interval(variant, rate)) for rate in found.rates]
        bounds = size(self.bound_bytes[variant]) if self.bound_bytes[variant] else "-"
        return [variant, share(found.clean[variant]), *means, bounds, "-" if time is None else f"{time:.2f}x"]

    def sentences(self) -> str:
        """What there is to see: at the rate where the last variant gains most, where it falls behind, its price."""
        found, plain, *others, best = self.accuracies, *self.variants
        rate = max(found.rates, key=lambda each: found.difference(best, plain, each).mean)
        kept = {variant: f"{share(found.interval(variant, rate).mean)} %" for variant in self.variants}
        protected = ", ".join(f"{kept[variant]} with {variant}" for variant in (*others, best))
        unprotected = f"{kept[plain]} of the answers are right without protection"
        seen = [f"With one bit in {1 / rate:,.0f} flipped, {unprotected}; {protected}."]
        if others:
            compared = [_compared(other, found.difference(best, other, rate)) for other in others]
            seen.append(f"On the same draws, {best} is {' and '.join(compared)}.")
        behind = [
            f"{_compared(other, difference)} at {power(each)}"
            for each in found.rates
            for other in others
            if each != rate and (difference := found.difference(best, other, each)).high < 0
        ]
        if behind:
            seen.append(f"But it is {' and '.join(behind)}.")
        return " ".join([*seen, self._price(best)])

    def _price(self, best: str) -> str:
        found, plain = self.accuracies, self.variants[0]
        drop = share(found.clean[plain] - found.clean[best])
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
        found = self.accuracies
        rates = []
        for rate in found.rates:
            interval = found.interval(variant, rate)
            rates.append(
                {
                    "rate": rate,
                    "mean": interval.mean,
                    # JSON has no infinity: one draw has no interval.
                    "interval": [interval.low, interval.high] if abs(interval.low) <= 1 else None,
                    "worst": found.worst(variant, rate),
                    "draws": found.draws[variant, rate].tolist(),
                }
            )
        return {
            "clean": found.clean[variant],
            "faulty": rates,
            "bound_bytes": self.bound_bytes[variant],
            "run_time_s": self.run_times.get(variant),
            "relative_run_time": self.relative_time(variant),
        }


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
