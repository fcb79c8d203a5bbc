"""Means with intervals as a report shows them: with an honest "none seen", "all alike" and "nothing estimated"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log1p, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fitact_fx.statistics import Interval, rule_of_three

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over `trials` draws with its interval, infinite where one draw says nothing about the spread.

    `never`: no draw showed the event, and `high` is what the rule of three leaves possible. `alike`: all draws are the
    same, so that the interval's lack of width says little. `exact`: every place was hit, and nothing is estimated.
    """

    mean: float
    low: float
    high: float
    trials: int
    never: bool = False
    alike: bool = False
    exact: bool = False

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return isfinite(self.low) and isfinite(self.high)


@dataclass(frozen=True)
class Stratum:
    """A part of the memory: in how many places it can be hit, and what came of the draws."""

    population: int
    estimate: Estimate
    values: Values

    @property
    def hides(self) -> bool:
        """Whether its draws were all the same, so that they say nothing about rarer ones."""
        return not self.estimate.exact and bool((self.values == self.values[0]).all())

    @property
    def variance(self) -> float:
        """Of the mean; infinite where nothing says how far the draws are spread."""
        if self.estimate.exact:
            return 0.0
        if self.estimate.trials == 1 or not self.estimate.known:
            return inf
        return float(self.values.var(ddof=1)) / len(self.values)


def sampled(values: Values, interval: Callable[[], Interval], confidence: float, *, event: bool) -> Estimate:
    """From draws. `event`: 0 means that nothing happened; `interval` is asked only where it is needed."""
    mean, count = float(values.mean()), len(values)
    if not isfinite(mean):  # a metric of the user's that is NaN or infinite in some trial
        return Estimate(mean, -inf, inf, count)
    if event and not values.any():
        return Estimate(0.0, 0.0, rule_of_three(count, confidence), count, never=True)
    found = interval()
    return Estimate(mean, found.low, found.high, count, alike=count > 1 and bool((values == values[0]).all()))


def enumerated(values: Values, population: int) -> Estimate:
    """From places that were hit one after the other: the first ones of them are no sample of all."""
    mean, count = float(values.mean()), len(values)
    whole = count == population and isfinite(mean)
    return Estimate(mean, mean, mean, count, exact=True) if whole else Estimate(mean, -inf, inf, count)


def pooled(strata: Sequence[Stratum], confidence: float) -> Estimate | None:
    """Over strata of one memory, each weighted with its population; None for none.

    The variance of a stratified mean is sum(w**2 * s**2 / n). Where no draw showed anything, shares p with
    sum(n * p) = 3 are as likely as the rule of three allows, and of those max(w * 3 / n) is the largest mean.
    """
    whole = sum(one.population for one in strata)
    if not whole:
        return None
    if len(strata) == 1:
        return strata[0].estimate
    weights = [one.population / whole for one in strata]
    weighted = list(zip(weights, strata, strict=True))
    mean = sum(weight * one.estimate.mean for weight, one in weighted)
    trials = sum(one.estimate.trials for one in strata)
    if all(one.estimate.exact for one in strata):
        return Estimate(mean, mean, mean, trials, exact=True)
    if all(one.estimate.never for one in strata):
        events = max(3.0, -log1p(-confidence))
        high = max(weight * events / one.estimate.trials for weight, one in weighted)
        return Estimate(0.0, 0.0, min(1.0, high), trials, never=True)
    # A stratum that showed nothing, or nothing new, has no variance of its own: what it may hide is added to its side.
    unseen = [weight * rule_of_three(one.estimate.trials, confidence) for weight, one in weighted if one.hides]
    hidden = max(unseen, default=0.0)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(sum(w * w * one.variance for w, one in weighted))
    if not isfinite(reach):
        return Estimate(mean, -inf, inf, trials)
    below = 0.0 if all(one.estimate.mean == 0 for _, one in weighted if one.hides) else hidden
    return Estimate(mean, max(0.0, mean - reach - below), min(1.0, mean + reach + hidden), trials)
