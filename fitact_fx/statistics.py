"""Intervals for what a campaign measures. The independent unit is the fault draw, never the image."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fitact_fx.errors import FitactError

Samples = NDArray[np.float64]

_AT_ONCE = 1 << 20  # samples resampled at once: bounds the memory, changes nothing else


@dataclass(frozen=True)
class Interval:
    """An estimate, and the confidence interval [low, high] around it, in the unit of the samples."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_mean(samples: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of `samples` (n,), one per fault draw, with its BCa bootstrap interval.

    BCa (Efron 1987), because accuracy under faults is skewed: most draws do nothing and a few ruin the
    network; the percentile interval misses the mean on the side of the ruins too often. The same samples
    and seed give the same resamples on any machine. One sample says nothing about the spread: its interval
    is infinite. Equal samples give an interval of no width; for "it never happened" see `rule_of_three`.

    FitactError for no samples, for a NaN or infinity among them, and for a confidence outside (0, 1).
    """
    values = _checked(samples)
    tail = (1 - _checked_confidence(confidence)) / 2
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, -inf, inf)
    if (values == values[0]).all():
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    means = np.sort(np.concatenate(list(_resampled_means(values, resamples, seed))))
    low, high = np.quantile(means, [_bca_level(values, means, level) for level in (tail, 1 - tail)])
    return Interval(mean, float(low), float(high))


def paired_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of a - b, both (n,) over the same fault draws in the same order, as `bootstrap_mean`."""
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise FitactError(f"pairs need the same draws on both sides; got {len(first)} and {len(second)}")
    return bootstrap_mean(first - second, confidence, resamples, seed)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (1927): good near 0 and 1 too, where SDC rates are.

    `mean` is the plain proportion. FitactError unless 0 <= successes <= trials and trials >= 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise FitactError(f"a proportion needs 0 <= successes <= trials, trials >= 1; got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + _checked_confidence(confidence)) / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    # Rounding must not push the ends beyond what was observed at 0 and at 1.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high)


def rule_of_three(trials: int) -> float:
    """What a rate stays below with 95 % confidence if `trials` showed no event: 3 / trials, at most 1.

    Slightly on the safe side of the exact 1 - 0.05 ** (1 / trials). FitactError unless trials >= 1.
    """
    if trials < 1:
        raise FitactError(f"no trials say nothing about a rate; got {trials}")
    return min(1.0, 3 / trials)


def _resampled_means(values: Samples, resamples: int, seed: int) -> Iterator[Samples]:
    """Means of `resamples` draws of n out of n with replacement, in pieces."""
    if resamples < 1:
        raise FitactError(f"a bootstrap needs at least one resample; got {resamples}")
    # Raw words, as everywhere: NumPy does not promise what Generator makes of them.
    words = np.random.Philox(key=seed % 2**128)
    size = len(values)
    rows = max(1, _AT_ONCE // size)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        high = words.random_raw(count * size) >> np.uint64(32)
        chosen = (high * np.uint64(size)) >> np.uint64(32)
        yield values[chosen.reshape(count, size)].mean(axis=1)


def _bca_level(values: Samples, means: Samples, level: float) -> float:
    """The quantile of `means` to read off in place of `level`: corrected for bias and acceleration."""
    normal = NormalDist()
    below = (np.count_nonzero(means < values.mean()) + np.count_nonzero(means <= values.mean())) / 2
    edge = 1 / (2 * len(means))  # no resample on one side must not mean an infinite correction
    bias = normal.inv_cdf(float(np.clip(below / len(means), edge, 1 - edge)))
    spread = values - values.mean()
    spread /= np.abs(spread).max()  # of no effect, but for the powers of tiny samples, which would be 0
    # The jackknife's acceleration, which for a mean is the samples' skewness / (6 sqrt(n)).
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    shifted = bias + normal.inv_cdf(level)
    # A few very skewed samples can bring the divisor to 0 and below: then the outermost mean is the answer.
    return normal.cdf(bias + shifted / max(1 - acceleration * shifted, 1e-9))


def _checked(samples: ArrayLike) -> Samples:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise FitactError(f"needs one number per fault draw, at least one; got shape {values.shape}")
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise FitactError(f"{count} of {len(values)} samples are NaN or infinite; count those draws as DUE instead")
    return values


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise FitactError(f"a confidence lies between 0 and 1; got {confidence}")
    return confidence
