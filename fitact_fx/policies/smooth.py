"""The form that bounds are learned in, and none at all. Neither is a policy that a scheme leaves in place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.policies.limits import HasLimits


@dataclass(frozen=True)
class Smooth:
    """The trainable FitReLU: `x * sigmoid(slope * (1 - x / upper))`, and the same below with `lower`.

    After FitAct's public re-implementation, `max(0, x - x * sigmoid(k * (x - bound)))` with k = 20, but
    with the slope relative to the bound, since an absolute one is wide for a layer that peaks at 1 and
    nothing for one that peaks at 20. Far beyond the bound the value goes to 0, not to the bound.
    Infinities and NaN give 0.
    """

    slope: float = 20.0
    name = "smooth"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        # The product below would make NaN of an infinity (inf * 0), in the gradient too.
        values = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        passed = values
        if bounds.upper is not None:
            passed = passed * torch.sigmoid((bounds.upper - values) * (self.slope / _size(bounds.upper)))
        if bounds.lower is not None:
            passed = passed * torch.sigmoid((values - bounds.lower) * (self.slope / _size(bounds.lower)))
        return passed


def _size(bound: Tensor) -> Tensor:
    """What the slope is relative to: the bound's own size, and something for a bound at 0 or infinity."""
    return bound.detach().abs().nan_to_num(posinf=1.0).clamp(min=1e-6)


@dataclass(frozen=True)
class Pass:
    """Every value passes as it is: the clean model, for comparison."""

    name = "pass"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        return values
