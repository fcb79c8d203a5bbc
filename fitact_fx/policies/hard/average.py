"""What the healthy feature maps have at the same place.

After Geissler et al., "Towards a Safety Case for Hardware Fault Tolerance in Convolutional Neural Networks Using
Activation Range Supervision" (arXiv 2108.07019), as the authors' published PyTorch code does it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.policies.feature_maps import FeatureMaps
from fitact_fx.policies.limits import HasLimits, ends, replaced


@dataclass(frozen=True)
class Average(FeatureMaps):
    """A value beyond its bound becomes the mean of the sample's healthy feature maps at that place.

    A map is all values of one sample and channel: H x W in (N, C, H, W), L in (N, L, C), one value in (N, C); the
    authors' code leaves (N, C) as it is, here the mean is then over the sample's healthy values. A map is healthy if
    none of its values is beyond its bound or NaN. Where no map of the sample is, the mean is 0.

    The mean is brought between the bounds of the value it replaces, which may be others than those of the maps it was
    taken from; NaN becomes 0. No gradient flows through a replacement.
    """

    name = "average"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        lower, upper = ends(bounds, values.dtype)
        inside = (values >= low) & (values <= high)
        dims = self.within(values)
        healthy = inside.all(dims, keepdim=True) if dims else inside
        channel = self.channel(values)
        count = healthy.sum(channel, keepdim=True).clamp(min=1)
        # Divided first: the sum of a map's values may not fit in a half type, their mean always does.
        mean = torch.where(healthy, values.detach() / count, 0.0).sum(channel, keepdim=True)
        return replaced(values, inside, mean, lower, upper)


POLICY = Average()
