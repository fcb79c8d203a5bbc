"""Undo the bit flip that is the likeliest cause of a value so far beyond its bound.

After Geissler et al., "Towards a Safety Case for Hardware Fault Tolerance in Convolutional Neural Networks Using
Activation Range Supervision" (arXiv 2108.07019), as the authors' published PyTorch code does it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.options import NOT_NEGATIVE, Span, check_numbers
from fitact_fx.policies.limits import HasLimits, ends, replaced


@dataclass(frozen=True)
class BackFlip:
    """How far a value lies above its upper bound T hints at which exponent bit flipped, and so at what it was before.

    Activations (N, ...) of any rank, each value on its own. A value x above T becomes

        0      where x >= far * T,
        middle where far * T > x >= near * T,
        T      below that.

    The result is brought between the bounds, so that `middle` is T where T is smaller. What lies below its lower bound
    becomes that bound; NaN becomes 0, and so does +inf. A type that cannot hold far * T (float16, and every fixed-point
    one) has only the lower two steps for finite values. The numbers are the authors', made for eight exponent bits.
    RecipeError unless 1 <= near <= far and 0 <= middle, all finite.
    """

    far: float = 2.0**64
    near: float = 2.0
    middle: float = 2.0
    name = "backflip"

    def __post_init__(self) -> None:
        check_numbers(self, Span(1, with_low=True), "near")
        check_numbers(self, Span(self.near, with_low=True), "far")
        check_numbers(self, NOT_NEGATIVE, "middle")

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        lower, upper = ends(bounds, values.dtype)
        # +inf reaches every threshold, also one that overflowed.
        back = torch.where(values >= upper * self.near, self.middle, upper)
        back = torch.where(values >= upper * self.far, 0.0, back)
        inside = (values >= low) & (values <= high)
        return replaced(values, inside, torch.where(values > high, back, lower), lower, upper)


POLICY = BackFlip()
