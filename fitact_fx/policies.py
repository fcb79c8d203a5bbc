"""What happens to a value beyond its bound. A policy is a value: `policy(values, bounds) -> values`.

The hard policies compare with *widened* bounds, see `Bounds.limits`: compiled code, other batch
sizes and other machines round differently, and an exact compare at the maximum seen would zero
clean values (measured: 30 % of a ResNet's neurons).

A slack relative to each bound alone is not enough: a rounding error is relative to the sums behind a
layer and not to the one small value it lands on. One neuron that peaks at 1e-5 of its layer's peak is
then zeroed, which moves others by more than their slack, and the error grows from layer to layer
(measured: outputs of a compiled ResNet-18 wrong by half their size). So a share of the site's own
scale is added.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fitact_fx.errors import RecipeError, known

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


@dataclass(frozen=True)
class Zero:
    """A value beyond its bound, and NaN, becomes 0 (Clip-Act, FitAct)."""

    name = "zero"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        # A NaN compares false, so this also removes NaNs.
        return torch.where((values >= low) & (values <= high), values, 0.0)


@dataclass(frozen=True)
class Clamp:
    """A value beyond its bound becomes the bound (Ranger), and NaN becomes 0."""

    name = "clamp"

    def __call__(self, values: Tensor, bounds: HasLimits) -> Tensor:
        low, high = bounds.limits(values.dtype)
        # A bound too large for the values' type is infinite in it, and its limit is not.
        upper = high if bounds.upper is None else torch.minimum(bounds.upper.to(values.dtype), high)
        lower = low if bounds.lower is None else torch.maximum(bounds.lower.to(values.dtype), low)
        # A NaN value meets both replacements; one that is left (a fault in the bound itself) goes last.
        clamped = torch.where(values <= high, values, torch.where(values != values, 0.0, upper))
        clamped = torch.where(clamped >= low, clamped, torch.where(values != values, 0.0, lower))
        return torch.where(clamped == clamped, clamped, 0.0)


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


Policy = Zero | Clamp | Smooth | Pass

_HARD: dict[str, Policy] = {policy.name: policy for policy in (Zero(), Clamp())}


def named(name: str) -> Policy:
    """The hard policy of that name; RecipeError lists the valid ones."""
    if name not in _HARD:
        raise RecipeError(known("policy", name, _HARD))
    return _HARD[name]
