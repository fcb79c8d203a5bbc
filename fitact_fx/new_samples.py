"""What calibrated bounds cost on samples that they were not calibrated from.

The greatest of n values is exceeded by the next one with a probability of 1 / (n + 1): bounds from 64 images cut off
up to 1.5 % of the neurons on each new image, whatever the network, and a ResNet-20 loses 37 points
(tools/results/study_data.md). A part of the data that is held out from learning does not show it, as bounds were
calibrated from that as well. So where the bounds of a site are what this data reaches, those that only held-out samples
have reached are taken back, for the asking, to what the others reach.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fitact_fx.ambience import random_states_kept
from fitact_fx.answers import IGNORED
from fitact_fx.batches import Batch
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.clean_accuracy import costs_of
from fitact_fx.clean_outputs import clean_scores
from fitact_fx.errors import CostlyWarning
from fitact_fx.holdout import Holdout
from fitact_fx.ranges import Range, watch
from fitact_fx.source import level_of_user
from fitact_fx.statistics import exceeds

_ROUNDINGS = ((2.0**-10, 0.0), (2.0**-7, 1 / 250))
"""How far a bound may lie from what was reached, by its own size and by its site's scale: other batches round
otherwise, and 16 or 8 bits more so."""


def warn_of_new_samples(hard: nn.Module, holdout: Holdout, max_drop: float) -> None:
    """A CostlyWarning where calibrated bounds change more of the clean model's answers on new samples than `max_drop`.

    Beyond chance, at 95 %. New are those held out; the bounds are those of the others. Not asked where each site has
    one bound, which takes few samples. Bounds from other data, or set by hand, stay as they are. Nothing has changed
    behind it.
    """
    sites = [each for each in bounded_sites(hard).values() if any(bound.numel() > 1 for bound in _set(each))]
    if not sites:
        return
    with random_states_kept(), torch.no_grad():
        new = _reached(hard, sites, holdout.held_out_batches())
        others = _reached(hard, sites, holdout.learned_batches())
        before = [(site, site.memory, site.stored, site.scale) for site in sites]
        try:
            for site in sites:
                site.set_bounds(*_without(site, new[site], others[site]))
            costs = costs_of(hard, (_of_clean_answers(hard, batch) for batch in holdout.held_out_batches()))
        finally:
            for site, memory, stored, scale in before:
                site.hold(memory, stored)
                site.scale = scale
    changed = max(0, round(costs.drop * costs.samples))
    if exceeds(changed, costs.samples, max_drop):
        warnings.warn(
            f"on new samples, calibrated bounds cost more than max_drop ({100 * max_drop:.2f} %): those from "
            f"{holdout.learned} samples change the clean model's answer on {changed} of the {costs.samples} others;\n"
            '  calibrate with more data, or take fewer bounds, such as granularity="layer"',
            CostlyWarning,
            stacklevel=level_of_user(),
        )


def _set(site: Bounded) -> list[Tensor]:
    return [bound for bound in (site.lower, site.upper) if bound is not None]


def _of_clean_answers(hard: nn.Module, batch: Batch) -> Batch:
    """The same inputs, and what the clean model says of them; where labels mean nothing, no answer does."""
    if batch.targets is None or batch.targets.ndim < 2:
        return batch._replace(targets=None)
    answers = clean_scores(hard, batch).argmax(1)
    if answers.shape != batch.targets.shape:
        return batch._replace(targets=None)
    return batch._replace(targets=answers.masked_fill(batch.targets == IGNORED, IGNORED))


def _reached(hard: nn.Module, sites: Sequence[Bounded], batches: Iterator[Batch]) -> dict[Bounded, Range]:
    """What the values of these samples reach at each site, where they have the shape of its bounds."""
    ranges = {site: Range(site) for site in sites}

    def taker(site: Bounded) -> Callable[[Tensor], None]:
        shapes = {bound.shape for bound in _set(site) if bound.numel() > 1}
        return lambda values: ranges[site].take(values) if site.bound_shape(values) in shapes else None

    watch(hard, batches, {site: taker(site) for site in sites}, "looking at new samples", after=lambda _: None)
    return ranges


def _without(site: Bounded, new: Range, others: Range) -> tuple[Tensor | None, Tensor | None]:
    """The bounds of a site as they would be had the new samples not been there."""
    lower, upper = site.lower, site.upper
    if new.low is None or new.high is None or others.low is None or others.high is None:
        return lower, upper  # these samples do not come by
    high = None if upper is None else _taken_back(upper, new.high, others.high, site.scale)
    low = None if lower is None else -_taken_back(-lower, -new.low, -others.low, site.scale)
    if low is not None and high is not None and lower is not None and upper is not None:
        return torch.minimum(low, upper), torch.maximum(high, lower)  # a side set by hand may lie beside all values
    return low, high


def _taken_back(upper: Tensor, new: Tensor, others: Tensor, scale: float) -> Tensor:
    new, others = new.to(upper), others.to(upper)
    for own, share in _ROUNDINGS:
        near = own * upper.abs() + share * scale
        if bool(((torch.maximum(new, others) - upper).abs() <= near).all()) and bool(upper.isfinite().all()):
            return torch.where(others < upper - near, others, upper)
    return upper
