"""Squeeze what lies above its bound back under it, keeping the order within the feature map.

After Geissler et al., "Towards a Safety Case for Hardware Fault Tolerance in Convolutional Neural Networks Using
Activation Range Supervision" (arXiv 2108.07019), as the authors' published PyTorch code does it.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from fitact_fx.policies.feature_maps import FeatureMaps
from fitact_fx.policies.limits import HasLimits, ends, replaced


@dataclass(frozen=True)
class Rescale(FeatureMaps):
    """A value x above its upper bound becomes lower + (x - least) / (most - least) * (upper - lower).

    `least` and `most` are the extremes of its feature map: all values of one sample and channel, over H and W in
    (N, C, H, W) and over L in (N, L, C). In (N, C), where a map would be one value, all values of the sample are one,
    as in the authors' code. The greatest value so becomes the bound and the others keep their order below it; where
    all are equal, each becomes the bound. Only values beyond their bound change: one below its lower bound becomes
    that bound, and a map with none beyond stays as it is, bit for bit.

    Where no lower bound is set, `lower` is the least value of the activation's kind (0 for ReLU), and the map's own
    least one where the kind has none. An infinity counts as the greatest number of its type; NaN becomes 0, and
    counts as 0. No gradient flows through a replacement.
    """

    name = "rescale"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        lower, upper = ends(bounds, values.dtype)
        numbers = values.detach().nan_to_num(nan=0.0)
        dims = self.within(values) or (1,)
        least, most = numbers.amin(dims, keepdim=True), numbers.amax(dims, keepdim=True)
        start = least if bounds.lower is None and bounds.minimum == -inf else torch.where(lower > -inf, lower, least)
        # Taken relative to the map's size and as a weighted sum, no difference of two large numbers overflows.
        size = torch.maximum(most, -least)
        share = (numbers / size - least / size) / (most / size - least / size)
        share = torch.where(most > least, share, 1.0)
        squeezed = start * (1 - share) + upper * share
        inside = (values >= low) & (values <= high)
        return replaced(values, inside, torch.where(values > high, squeezed, lower), lower, upper)


POLICY = Rescale()
