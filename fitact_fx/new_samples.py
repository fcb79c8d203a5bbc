"""What calibrated bounds cost on samples that they were not calibrated from.

The greatest of n values is exceeded by the next one with a probability of 1 / (n + 1): bounds from 64 images cut off
up to 1.5 % of the neurons on each new image, whatever the network, and a ResNet-20 loses 37 points
(tools/results/study_data.md). A part of the data that is held out does not show it, as it was calibrated from as well.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fitact_fx.clean_accuracy import costs_of
from fitact_fx.errors import CostlyWarning
from fitact_fx.holdout import Holdout
from fitact_fx.ranges import Range, observed_ranges
from fitact_fx.sides import Side, put_all
from fitact_fx.source import level_of_user
from fitact_fx.statistics import wilson


def warn_of_new_samples(hard: nn.Module, sides: Sequence[Side], holdout: Holdout, max_drop: float) -> None:
    """A CostlyWarning where bounds calibrated from the other samples cost more on those held out than `max_drop`.

    More, that is, beyond what so few samples could show by chance: at 95 %. Not asked where each site has one bound,
    which takes few samples. The bounds are behind it what they were before.
    """
    if all(side.calibrated.numel() == 1 for side in sides):
        return
    before = [getattr(side.site, side.name) for side in sides]
    ranges = observed_ranges(hard, holdout.learned_batches(), "looking for new samples' values")
    put_all(sides, [_of_others(side, ranges[side.site.site]) for side in sides])
    costs = costs_of(hard, holdout.held_out_batches())
    put_all(sides, before)
    lost = max(0, round(costs.drop * costs.samples))
    if wilson(lost, costs.samples).low > max_drop:
        warnings.warn(
            f"on new samples, bounds from so few cost clean accuracy: those from {holdout.learned} samples cost "
            f"{100 * costs.drop:.1f} points on the {costs.samples} others, more than max_drop allows "
            f"({100 * max_drop:.2f});\n"
            '  calibrate with more data, or take fewer bounds: granularity="channel" or "layer"',
            CostlyWarning,
            stacklevel=level_of_user(),
        )


def _of_others(side: Side, seen: Range) -> Tensor:
    """As much of the calibrated bound as these samples reach."""
    assert seen.low is not None  # a site that did not run has been refused
    assert seen.high is not None
    if side.name == "upper":
        return torch.minimum(side.calibrated, seen.high.to(side.calibrated))
    return torch.maximum(side.calibrated, seen.low.to(side.calibrated))
