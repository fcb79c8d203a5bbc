"""What a scheme decides for one site."""

from dataclasses import dataclass

from fitact_fx.granularity import Granularity
from fitact_fx.options import Span, check_numbers
from fitact_fx.policies import Policy

PERCENTILE = Span(0, 100, with_high=True)
PART = Span(0, 1, with_high=True)


@dataclass(frozen=True)
class Spec:
    """How one site is bounded: how many bounds, what happens beyond them, and where calibration puts them.

    `learned`: the scheme's `fit` moves the bounds after calibration. `percentile`, in (0, 100]: the bound is
    that percentile of the values seen and not their extreme; `share`, in (0, 1]: the part of it that is taken.
    `carries`: names of earlier sites whose bounds hold here too, so that none are calibrated: the least lower and
    the greatest upper one of them, and 0 between them if `includes_zero`.
    RecipeError for another percentile or share, and for what is not a number.
    """

    granularity: Granularity
    policy: Policy
    learned: bool = False
    percentile: float = 100.0
    share: float = 1.0
    carries: tuple[str, ...] = ()
    includes_zero: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, PERCENTILE, "percentile")
        check_numbers(self, PART, "share")
