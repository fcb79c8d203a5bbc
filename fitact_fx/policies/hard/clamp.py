"""The bound beyond the bound (Ranger)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.policies.limits import HasLimits, ends


@dataclass(frozen=True)
class Clamp:
    """A value beyond its bound becomes the bound (Ranger), and NaN becomes 0."""

    name = "clamp"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        lower, upper = ends(bounds, values.dtype)
        # A NaN value meets both replacements; one that is left (a fault in the bound itself) goes last.
        clamped = torch.where(values <= high, values, torch.where(values != values, 0.0, upper))
        clamped = torch.where(clamped >= low, clamped, torch.where(values != values, 0.0, lower))
        return torch.where(clamped == clamped, clamped, 0.0)


POLICY = Clamp()
