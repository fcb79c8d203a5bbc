"""Intervals for what a campaign measures, and how much it must measure. The unit is the fault draw, never the image."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf, isfinite, log1p
from operator import index
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fitact_fx.errors import FitactError

Samples = NDArray[np.float64]

_AT_ONCE = 1 << 20  # samples resampled at once: bounds the memory, changes nothing else
_FEWEST_RESAMPLES = 100  # of fewer, all may lie on one side of the mean, and BCa corrects to infinity
_SUREST = 0.999999  # above, resamples show nothing, and BCa's correction of the most skewed samples turns over
_MOST_JACKKNIFED = 20_000  # SciPy's BCa takes the square of their number: seconds here, hours for a million


@dataclass(frozen=True)
class Interval:
    """An estimate, and the confidence interval [low, high] around it, in the unit of the samples."""

    mean: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """How far the truth may be from the mean: the longer side."""
        return max(self.high - self.mean, self.mean - self.low)

    @property
    def half_width(self) -> float:
        """Half of what lies between its ends: the 0.01 of "to within a point"."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_mean(samples: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of `samples` (n,), one per fault draw, with its BCa bootstrap interval; the mean lies within it.

    BCa (Efron 1987), because accuracy under faults is skewed: most draws do nothing and a few ruin the
    network; the percentile interval misses the mean on the side of the ruins too often. Above 20,000 samples,
    where the correction is small and takes too long, it is the percentile interval. The same samples and seed
    give the same interval. One sample says nothing about the spread: its interval is infinite. Equal samples
    give an interval of no width; for "it never happened" see `rule_of_three`.

    FitactError for no samples, for a NaN or infinity among them, for a confidence outside (0, 1) or above
    0.999999, and for fewer than 100 resamples.
    """
    values = _checked(samples)
    if _checked_confidence(confidence) > _SUREST:
        raise FitactError(f"a bootstrap cannot show a confidence of {confidence};\n  ask for {_SUREST} at most")
    if resamples < _FEWEST_RESAMPLES:
        raise FitactError(f"a bootstrap needs {_FEWEST_RESAMPLES} resamples or more; got {resamples}")
    mean, least, most = float(values.mean()), float(values.min()), float(values.max())
    if len(values) == 1:
        return Interval(mean, -inf, inf)
    if least == most:
        return Interval(least, least, least)
    # From 0 to 1, so that resamples with equal means are equal to the last bit, and tiny differences no special case.
    low, high = _resampled((values - least) / (most - least), confidence, resamples, seed)
    mean = min(max(mean, least), most)  # rounding alone brings it out of its samples
    return Interval(mean, min(mean, least + low * (most - least)), max(mean, min(most, least + high * (most - least))))


def stopping_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """What a campaign looks at to stop once it knows enough: `bootstrap_mean`, and what no draw has shown yet.

    A bootstrap knows only what was seen. Most draws do nothing and a rare one ruins the network, so a few draws are
    often equal, or nearly: a campaign would stop at once, sure of itself, and never see a ruin. That none of n
    draws showed an outcome says that at most 3/n of all do (`rule_of_three`). Where the samples are shares, such
    an outcome is 0 or 1 at worst, and moves the mean m to (1 - 3/n) m or to m + 3/n (1 - m): the interval reaches as
    far. Equal samples outside [0, 1] are no shares; as nothing says how far a rare one could lie from them,
    their interval is infinite.
    """
    values = _checked(samples)
    found = bootstrap_mean(values, confidence)
    if not ((values >= 0) & (values <= 1)).all():
        return Interval(found.mean, -inf, inf) if (values == values[0]).all() else found
    rest, mean = rule_of_three(len(values), confidence), found.mean
    unseen = Interval(mean, mean * (1 - rest), mean + (1 - mean) * rest)
    return Interval(mean, min(_finite(found.low, 0.0), unseen.low), max(_finite(found.high, 1.0), unseen.high))


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

    `mean` is the plain proportion. FitactError unless 0 <= successes <= trials and trials >= 1, whole numbers.
    """
    from scipy.stats import binomtest

    _require_proportion(successes, trials)
    share = index(successes) / index(trials)
    found = binomtest(index(successes), index(trials)).proportion_ci(_checked_confidence(confidence), method="wilson")
    return Interval(share, float(found.low), float(found.high))


def exceeds(successes: int, trials: int, share: float, confidence: float = 0.95) -> bool:
    """Whether so many of the trials are more than chance makes of `share` of them: the exact one-sided binomial test.

    FitactError unless 0 <= successes <= trials and trials >= 1, whole numbers, and 0 <= share <= 1.
    """
    from scipy.stats import binomtest

    _require_proportion(successes, trials)
    if not 0 <= share <= 1:  # nor NaN
        raise FitactError(f"a share lies between 0 and 1; got {share}")
    found = binomtest(index(successes), index(trials), share, alternative="greater")
    return bool(found.pvalue < 1 - _checked_confidence(confidence))


def rule_of_three(trials: int, confidence: float = 0.95) -> float:
    """What a rate stays below with that confidence if `trials` showed no event: 3 / trials, at most 1.

    Slightly on the safe side of the exact 1 - 0.05 ** (1 / trials); above 95 % it is -ln(1 - confidence) / trials.
    FitactError unless trials >= 1.
    """
    if not trials >= 1:  # nor NaN
        raise FitactError(f"no trials say nothing about a rate; got {trials}")
    return min(1.0, max(3.0, -log1p(-_checked_confidence(confidence))) / trials)


def sample_size(population: int, margin: float = 0.01, confidence: float = 0.95, share: float = 0.5) -> int:
    """How many of `population` single faults to draw, none twice, to know the share that does harm to +-`margin`.

    Leveugle et al., DATE 2009: n = N / (1 + e^2 (N - 1) / (t^2 p (1 - p))), rounded up. `share` is the p that
    is expected; 0.5 needs most, and so is right for any. t is the normal distribution's cut-off as tables
    print it, with three decimals: 385 for 5 % at 95 %, 9,604 for 1 % at 95 %, 16,590 for 1 % at 99 % of large N.

    FitactError for a population below 1, and for a margin, confidence or share outside (0, 1).
    """
    if not hasattr(population, "__index__") or index(population) < 1:
        raise FitactError(f"a population is a whole number of faults from 1 up; got {population!r}")
    for word, given in (("margin", margin), ("share", share)):
        if not 0 < given < 1:
            raise FitactError(f"a {word} lies between 0 and 1; got {given}")
    # In fractions: floating point would make 9,605 of 9,604, and knows no population beyond 2 ** 53.
    every, p = index(population), _written(share)
    spread = _cut_off(confidence) ** 2 * p * (1 - p)
    return ceil(every * spread / (spread + _written(margin) ** 2 * (every - 1)))


def draws_needed(spread: float, margin: float = 0.01, confidence: float = 0.95) -> int:
    """How many fault draws give a mean to +-`margin`, if single draws scatter by the standard deviation `spread`.

    For a campaign at a bit error rate, where the unit is the draw: n = (z s / e)^2, rounded up, at least 2; z
    as in `sample_size`. Accuracy near the rate where a network breaks down scatters by 0.2 and more; a few
    draws of one's own tell. FitactError for a spread below 0, a margin not above 0, and a confidence outside (0, 1).
    """
    if not (isfinite(spread) and spread >= 0):
        raise FitactError(f"a spread is a standard deviation, from 0 up; got {spread}")
    if not (isfinite(margin) and margin > 0):
        raise FitactError(f"a margin lies above 0; got {margin}")
    return max(2, ceil((_cut_off(confidence) * _written(spread) / _written(margin)) ** 2))


def area_under(rates: ArrayLike, values: ArrayLike) -> float:
    """The mean of `values` (n,) over log10 of the `rates` (n,): the area under them, divided by its width.

    One number for a whole curve of accuracy against bit error rate: every decade counts alike, straight lines in
    between, and a constant c gives c. Rates may come in any order; values at the same rate count as their mean.
    FitactError for a rate that is not above 0, fewer than two different ones, and a NaN or infinity.
    """
    from scipy.integrate import trapezoid

    given, heights = _checked(rates), _checked(values)
    if given.shape != heights.shape:
        raise FitactError(f"an area needs one value per rate; got {len(given)} rates and {len(heights)} values")
    distinct, which = np.unique(given, return_inverse=True)
    if distinct[0] <= 0 or len(distinct) < 2:
        raise FitactError(f"an area needs two different rates or more, all above 0; got {distinct.tolist()}")
    means, places = np.bincount(which, heights) / np.bincount(which), np.log10(distinct)
    return float(trapezoid(means, places) / (places[-1] - places[0]))


def _resampled(values: Samples, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=confidence,
        method="BCa" if len(values) <= _MOST_JACKKNIFED else "percentile",
        rng=np.random.Generator(np.random.Philox(key=seed % 2**128)),
    ).confidence_interval
    return float(found.low), float(found.high)


def _require_proportion(successes: int, trials: int) -> None:
    whole = hasattr(successes, "__index__") and hasattr(trials, "__index__")
    if not whole or trials < 1 or not 0 <= successes <= trials:
        raise FitactError(f"a proportion needs 0 <= successes <= trials, trials >= 1; got {successes} of {trials}")


def _cut_off(confidence: float) -> Fraction:
    """Two-sided, to three decimals: 1.960 for 95 %. Never 0, which would ask for no samples at all."""
    cut = -NormalDist().inv_cdf((1 - _checked_confidence(confidence)) / 2)
    return max(Fraction(round(1000 * cut), 1000), Fraction(1, 1000))


def _written(number: float) -> Fraction:
    """The decimal number that the user wrote: 0.01 is 1/100, and not the nearest sum of powers of two."""
    return Fraction(repr(float(number)))


def _finite(end: float, otherwise: float) -> float:
    return end if isfinite(end) else otherwise


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
