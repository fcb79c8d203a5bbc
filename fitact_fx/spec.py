"""What a scheme decides for one site."""

from dataclasses import dataclass

from fitact_fx.granularity import Granularity
from fitact_fx.policies import Policy


@dataclass(frozen=True)
class Spec:
    """How one site is bounded: how many bounds, what happens beyond them, and where calibration puts them.

    `learned`: the scheme's `fit` moves the bounds after calibration. `percentile`, in (0, 100]: the bound is
    that percentile of the values seen and not their extreme; `share`: the part of it that is taken. `carries`:
    names of earlier sites whose bounds hold here too, so that none are calibrated: the least lower and the
    greatest upper one of them.
    """

    granularity: Granularity
    policy: Policy
    learned: bool = False
    percentile: float = 100.0
    share: float = 1.0
    carries: tuple[str, ...] = ()
