"""Zero beyond the bound (Clip-Act, FitAct)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.policies.limits import HasLimits


@dataclass(frozen=True)
class Zero:
    """A value beyond its bound, and NaN, becomes 0 (Clip-Act, FitAct)."""

    name = "zero"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        # A NaN compares false, so this also removes NaNs.
        return torch.where((values >= low) & (values <= high), values, 0.0)


POLICY = Zero()
