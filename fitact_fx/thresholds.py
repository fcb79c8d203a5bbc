"""One site's bounds as a share of what they were: what a search for thresholds moves."""

import torch
from torch import Tensor

from fitact_fx.bounded import Bounded
from fitact_fx.policies import scale_of


class Threshold:
    """The bounds of one site, which can be drawn in to a share of their size and put back.

    The threshold is on the magnitude: beyond that share of the larger side nothing passes, and a smaller
    side, such as GELU's -0.17, stays. With several bounds each has its own size.
    """

    def __init__(self, site: Bounded) -> None:
        self.site, self.lower, self.upper = site, site.lower, site.upper
        sides = [side.abs() for side in (site.lower, site.upper) if side is not None]
        self.size = torch.stack(torch.broadcast_tensors(*sides)).amax(0) if sides else torch.zeros(())

    @property
    def can_move(self) -> bool:
        """Whether a share of the bounds is another bound: not where all are infinite or 0."""
        return bool((self.size.isfinite() & (self.size > 0)).any())

    @property
    def value(self) -> float:
        """The greatest finite bound as it stands now, as an absolute value."""
        return scale_of(self.site.lower, self.site.upper)

    def put(self, share: float) -> None:
        """Draw the bounds in to this share of what they were; at 1 they are again what they were."""
        lower, upper, limit = self.lower, self.upper, self.size * share
        if share < 1:
            lower = None if lower is None else _within(lower, -limit, self.upper)
            upper = None if upper is None else -_within(-upper, -limit, None if lower is None else -lower)
        self.site.set_bounds(lower, upper)


def _within(lower: Tensor, limit: Tensor, upper: Tensor | None) -> Tensor:
    """The lower bound, not below the limit and not above the upper bound."""
    drawn = torch.maximum(lower, limit)
    return drawn if upper is None else torch.minimum(drawn, upper)
