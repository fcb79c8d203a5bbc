"""Percentiles of what each site gives, to a stated resolution, in a second pass over the data.

The first pass (`ranges`) finds the exact extremes under each bound. The second counts the values in BINS bins of
equal width between them, so the memory does not depend on the amount of data: BINS + 1 counters for each bound.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fitact_fx.errors import CalibrationError, site_message
from fitact_fx.policies import SCALE_SHARE, slack
from fitact_fx.ranges import Range, extremes, watch

BINS = 2048
"""How many bins there are between the extremes; a percentile is exact to (greatest - least) / BINS."""

COUNTER_BYTES = 2**30
"""The counters of all sites together take no more memory than this."""

_PIECE = 2**16  # values that are counted at a time: what stays in a cache


class Histogram:
    """How many values of one site lie in each bin, for each of its bounds.

    Bin 0 holds the values at the least one; bin i those in (low + (i - 1) * width, low + i * width].
    """

    def __init__(self, seen: Range) -> None:
        assert seen.low is not None  # a site that did not run has been refused
        assert seen.high is not None
        self.seen = seen
        self.low, self.high = seen.low, seen.high
        self.precise = torch.float32 if seen.low.device.type == "mps" else torch.float64
        low, high = (side.reshape(-1, 1).to(self.precise) for side in (seen.low, seen.high))
        self.start, self.width = low, (high - low) / BINS
        self.bins_per_unit = torch.where(high > low, BINS / (high - low), 0.0)
        self.counts = torch.zeros(len(low), BINS + 1, dtype=_counter(seen), device=low.device)

    def take(self, values: Tensor) -> None:
        """Count these activations, (N, ...). CalibrationError for a value that the first pass did not reach."""
        granularity = self.seen.bounded.spec.granularity
        shared = granularity.shared_dims(tuple(values.shape))
        values = values.detach() if values.is_floating_point() else values.float()
        self._refuse_new(*extremes(values, shared, self.seen.bounded.bound_shape(values)))
        kept = [dim for dim in range(values.ndim) if dim not in shared]
        rows = values.permute(*kept, *shared).reshape(len(self.counts), -1)
        one = torch.ones((), dtype=self.counts.dtype, device=rows.device)
        for piece in rows.split(max(1, _PIECE // len(rows)), dim=1):
            places = (piece.to(self.precise) - self.start).mul_(self.bins_per_unit).ceil_().clamp_(0, BINS).long()
            self.counts.scatter_add_(1, places, one.expand_as(places))

    def _refuse_new(self, low: Tensor, high: Tensor) -> None:
        """A batch of another size may round otherwise, as `policies.slack` allows it to; other data may not."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        room = (size + SCALE_SHARE * size.max()) * slack(low.dtype)
        # A NaN compares false.
        if low.shape != self.low.shape or not bool(((low >= self.low - room) & (high <= self.high + room)).all()):
            problem = "in the second pass over the data it gives values beyond those of the first"
            remedy = "give the same samples each time (their order may change), such as a list or a DataLoader"
            bounded = self.seen.bounded
            raise CalibrationError(site_message(bounded.site, bounded.source, problem, remedy))

    def upper(self, percentile: float) -> Tensor:
        """The least upper edge of a bin such that at least `percentile` % of the values lie at it or below."""
        reached = self._reached(self.counts, percentile)
        edge = self.start + self.width * reached
        return torch.where(reached == BINS, self.high.reshape(-1, 1), edge).reshape(self.high.shape).to(self.high)

    def lower(self, percentile: float) -> Tensor:
        """The greatest lower edge of a bin such that at least `percentile` % of the values lie at it or above."""
        reached = BINS - self._reached(self.counts.flip(1), percentile)
        edge = self.start + self.width * (reached - 1).clamp(min=0)
        return edge.reshape(self.low.shape).to(self.low)

    def _reached(self, counts: Tensor, percentile: float) -> Tensor:
        """The first bin with which at least that share of the values has been counted, for each bound."""
        below = counts.cumsum(1).to(self.precise)
        return (below * 100 < percentile * below[:, -1:]).sum(1, keepdim=True)


def percentile_bounds(hard: nn.Module, data: object, ranges: Mapping[str, Range]) -> dict[str, tuple[Tensor, Tensor]]:
    """Site name -> (lower, upper), for the sites whose spec asks for a percentile below 100.

    At least p % of the values lie at the upper bound or below, and at least p % at the lower one or above, which is
    the (100 - p) percentile. Each is off by (greatest - least) / BINS at most. `data` is run a second time.
    Raises CalibrationError if there are too many bounds to count under, if the data are not the same as in the first
    pass, and if the percentile leaves nothing between the two bounds, or nothing above the minimum of a one-sided site.
    """
    wanted = {name: seen for name, seen in ranges.items() if seen.bounded.spec.percentile < 100}
    if not wanted:
        return {}
    _refuse_too_many(wanted)
    histograms = {name: Histogram(seen) for name, seen in wanted.items()}
    takers = {each.seen.bounded: each.take for each in histograms.values()}
    watch(hard, data, takers, "percentiles", after=lambda number: None)
    return {name: _pair(each) for name, each in histograms.items()}


def _pair(histogram: Histogram) -> tuple[Tensor, Tensor]:
    bounded = histogram.seen.bounded
    percentile = bounded.spec.percentile
    if int(histogram.counts[0].sum()) != histogram.seen.count:
        problem = "in the second pass over the data it gives more or fewer values than in the first"
        raise CalibrationError(site_message(bounded.site, bounded.source, problem, "give the same samples each time"))
    lower, upper = histogram.lower(percentile), histogram.upper(percentile)
    if bounded.minimum == -torch.inf and bool((lower > upper).any()):
        problem = f"percentile {percentile:g} leaves nothing between its lower and its upper bound"
        remedy = "give more than 50 where activations have two sides"
        raise CalibrationError(site_message(bounded.site, bounded.source, problem, remedy))
    _refuse_silent(histogram, upper)
    return lower, upper


def _refuse_silent(histogram: Histogram, upper: Tensor) -> None:
    """A site with most values at its minimum (ReLU: at 0) would give nothing else any more; some neurons of it may."""
    bounded = histogram.seen.bounded
    active = histogram.high > bounded.minimum
    if not bool(active.any()) or bool((upper[active] > bounded.minimum).any()):
        return
    problem = (
        f"at percentile {bounded.spec.percentile:g} its upper bound is {bounded.minimum:g}, its least value, "
        f"and it gives up to {float(histogram.high.max()):g}"
    )
    remedy = "give a greater percentile (100 is the maximum), or leave it out (sites=lambda site: site.name != ...)"
    raise CalibrationError(site_message(bounded.site, bounded.source, problem, remedy))


def _counter(seen: Range) -> torch.dtype:
    return torch.int32 if seen.count < 2**31 else torch.int64


def _refuse_too_many(wanted: Mapping[str, Range]) -> None:
    held = sum(
        seen.low.numel() * (BINS + 1) * _counter(seen).itemsize for seen in wanted.values() if seen.low is not None
    )
    if held > COUNTER_BYTES:
        most = max(wanted.values(), key=lambda seen: 0 if seen.low is None else seen.low.numel()).bounded
        problem = f"percentiles under so many bounds need {held / 2**30:.1f} GiB of counters"
        remedy = 'harden with granularity="layer" or "channel", or take the extremes (percentile=100)'
        raise CalibrationError(site_message(most.site, most.source, problem, remedy))
