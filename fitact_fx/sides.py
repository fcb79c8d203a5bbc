"""What a learning moves: one side of one site, from its calibrated bounds on."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fitact_fx.bounded import SIDES, Bounded, bounded_sites
from fitact_fx.errors import CalibrationError


class Side:
    """One side of one site: its calibrated bounds and how far, in logarithms, they have been moved.

    A bound is `calibrated * exp(theta)`: one learning rate then fits a layer that peaks at 1 and one that
    peaks at 20, and a regulariser counts shares of the calibrated bound. With `together`, theta is the sum of one
    part per bound and one that all bounds of a feature map share (dimensions 2 and up of the bounds).
    """

    def __init__(self, site: Bounded, name: str, calibrated: Tensor, *, together: bool = False) -> None:
        self.site, self.name, self.calibrated = site, name, calibrated
        self.own = torch.zeros_like(calibrated)
        shared = (*calibrated.shape[:2], *(1 for _ in calibrated.shape[2:]))
        self.common = self.own.new_zeros(shared) if together and calibrated.ndim > 2 else None
        # Only a bound on its own side of 0 gets tighter by shrinking; infinity and 0 stay what they are.
        outward = calibrated > 0 if name == "upper" else calibrated < 0
        self.movable = outward & calibrated.isfinite()
        # Where both bounds lie on one side of 0, the outer one stops at the inner one.
        self.other: Tensor | None = site.lower if name == "upper" else site.upper

    @property
    def learned(self) -> list[Tensor]:
        """What a descent moves."""
        return [self.own] if self.common is None else [self.own, self.common]

    @property
    def theta(self) -> Tensor:
        """How far each bound has been moved, in logarithms."""
        return self.own if self.common is None else self.own + self.common

    def at(self, share: float = 1.0) -> Tensor:
        """The bounds, `share` of the way from the calibrated to the learned ones."""
        moved = self.calibrated.where(self.movable, 0.0) * torch.exp(share * self.theta)
        bound = torch.where(self.movable, moved, self.calibrated)
        if self.other is None:
            return bound
        return torch.maximum(bound, self.other) if self.name == "upper" else torch.minimum(bound, self.other)

    def put(self, bound: Tensor) -> None:
        """Let the site use this bound; unlike Bounded.set_bounds, keep its gradient."""
        setattr(self.site, self.name, bound)

    def hold_inside(self) -> None:
        """No bound above all that was seen: it would protect less and keep no clean value."""
        with torch.no_grad():
            if self.common is None:
                self.own.clamp_(max=0.0)
            else:
                self.own.copy_(torch.minimum(self.own, -self.common))

    def tightness(self) -> Tensor:
        """The mean square of the bounds as shares of the calibrated ones."""
        squares = torch.exp(2 * self.theta) * self.movable
        return squares.sum() / self.movable.sum().clamp(min=1)


def sides_to_learn(hard: nn.Module, *, together: bool = False) -> list[Side]:
    """Every side of every site whose spec is to be learned, in call order; CalibrationError if none can move."""
    sides = [
        Side(site, name, bound, together=together)
        for site in bounded_sites(hard).values()
        for name in SIDES
        if site.spec.learned and (bound := getattr(site, name)) is not None
    ]
    if not any(side.movable.any() for side in sides):
        raise CalibrationError("no site of this model has a finite bound to learn;\n  calibrate it first")
    return sides


def put_all(sides: Sequence[Side], bounds: Iterable[Tensor]) -> None:
    """Set the bounds for good, as each site stores them, and its scale with them."""
    for side, bound in zip(sides, bounds, strict=True):
        side.put(bound.detach())
    for site in dict.fromkeys(side.site for side in sides):
        site.set_bounds(site.lower, site.upper)


def mean_of(bounds: Iterable[Tensor]) -> float:
    """The mean of the absolute values of all finite bounds."""
    values = torch.cat([bound.detach().abs().flatten().float() for bound in bounds])
    return float(values[values.isfinite()].mean())
