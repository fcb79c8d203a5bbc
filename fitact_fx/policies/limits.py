"""What a policy is, and the limits that values are compared with: `policy(values, bounds) -> values`.

The hard policies compare with *widened* bounds, see `Bounds.limits`: compiled code, other batch
sizes and other machines round differently, and an exact compare at the maximum seen would zero
clean values (measured: 30 % of a ResNet's neurons).

A slack relative to each bound alone is not enough: a rounding error is relative to the sums behind a
layer and not to the one small value it lands on. One neuron that peaks at 1e-5 of its layer's peak is
then zeroed, which moves others by more than their slack, and the error grows from layer to layer
(measured: outputs of a compiled ResNet-18 wrong by half their size). So a share of the site's own
scale is added.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SCALE_SHARE = 0.25
"""How much of a site's scale counts beside a bound's own size when that bound is widened."""


def slack(dtype: torch.dtype) -> float:
    """How far a value may lie beyond its bound, relative to |bound| + SCALE_SHARE * scale of its site.

    float32 and float64: 2^-10; in half types 8 rounding steps: 2^-7 in float16, 2^-4 in bfloat16.
    """
    return max(2.0**-10, 8 * torch.finfo(dtype).eps)


def scale_of(*bounds: Tensor | None) -> float:
    """The scale of a site: its greatest finite bound, as an absolute value; 0 where there is none."""
    held = [bound.detach().abs() for bound in bounds if bound is not None and bound.numel() and not bound.is_meta]
    return max((float(bound.where(bound.isfinite(), 0.0).max()) for bound in held), default=0.0)


class Bounds(NamedTuple):
    """The bounds of one site. A side that is None is free down (or up) to what the kind can reach.

    `minimum` is the least value the activation can give when nothing is faulty: 0 for ReLU; `scale`
    the site's own, a constant of the code and no memory that a fault could hit.
    """

    lower: Tensor | None
    upper: Tensor | None
    minimum: float
    scale: float

    def limits(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(low, high): the widened bounds that values of `dtype` are compared with.

        A finite bound never widens to infinity, and a free side still stops an infinity, unless the
        other side is infinite: then the user has asked for no bound at all.
        """
        if self.upper is None and self.lower is None:
            raise ValueError("no bound is set on either side")
        low = _free(self.upper, self.minimum, dtype) if self.lower is None else -self._widened(-self.lower, dtype)
        high = -_free(self.lower, -torch.inf, dtype) if self.upper is None else self._widened(self.upper, dtype)
        return low, high

    def _widened(self, bound: Tensor, dtype: torch.dtype) -> Tensor:
        wide = bound.to(torch.promote_types(bound.dtype, dtype))  # neither type may round or overflow the other's
        widened = (wide + (wide.abs() + SCALE_SHARE * self.scale) * slack(dtype)).to(dtype)
        return torch.where(bound == torch.inf, bound.to(dtype), widened.clamp(max=torch.finfo(dtype).max))


def _free(other: Tensor | None, minimum: float, dtype: torch.dtype) -> Tensor:
    """The least value on a side that has no bound, where the other side's bound is `other`."""
    assert other is not None  # a site with no bound at all is not asked
    least = max(minimum, torch.finfo(dtype).min)
    return torch.full_like(other, least, dtype=dtype).masked_fill(other.isinf(), -torch.inf)


class HasLimits(Protocol):
    """What a policy may ask of a site's bounds: `Bounds`, or constants folded from them."""

    @property
    def lower(self) -> Tensor | None: ...
    @property
    def upper(self) -> Tensor | None: ...
    @property
    def minimum(self) -> float: ...
    def limits(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]: ...


class Policy(Protocol):
    """What happens to a value beyond its bound; implementations are frozen dataclasses whose fields are its numbers.

    Written in operators that work on tensors and on `torch.fx` proxies alike: `lower` calls a policy on both.
    """

    @property
    def name(self) -> str: ...
    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        """The activations (N, ...) with what lies beyond `bounds` replaced."""


def ends(bounds: HasLimits, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(lower, upper): what a value beyond its bound is brought back to; a side that is free ends at its limit."""
    low, high = bounds.limits(dtype)
    # A bound too large for the values' type is infinite in it, and its limit is not.
    upper = high if bounds.upper is None else torch.minimum(bounds.upper.to(dtype), high)
    lower = low if bounds.lower is None else torch.maximum(bounds.lower.to(dtype), low)
    return lower, upper


def replaced(values: Tensor, inside: Tensor, by: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """`values` where `inside`, else `by` brought between `lower` and `upper`; NaN, in a value or a bound, gives 0."""
    within = torch.minimum(torch.maximum(by, lower), upper)
    usable = (values == values) & (within == within)
    return torch.where(inside, values, torch.where(usable, within, 0.0))
