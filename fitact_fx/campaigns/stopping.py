"""When a cell of a campaign knows enough: decided at a few looks, from the trials so far and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from fitact_fx.statistics import draws_needed, rule_of_three, stopping_interval

_GROWTH = 1.2  # from look to look at most: few enough that looking often costs little confidence
_LEAST = 0.02  # and at least
_ROUNDING = 1e-9  # 3 / 300 is 0.01, and 0.99 + 0.01 is not quite 1


@dataclass(frozen=True)
class StopRule:
    """Stop when the mean of `measure` is known to +-`until`, after `minimum` trials at least.

    Known: neither `stopping_interval` nor the normal approximation reaches further from the mean. The second is quick
    to compute, and for skewed draws the two do not fail together.
    """

    until: float | None
    minimum: int
    measure: str
    confidence: float

    def first_look(self, trials: int) -> int:
        """How many trials come before the first decision."""
        return trials if self.until is None else min(trials, self.minimum)

    def next_look(self, look: int, trials: int, values: Sequence[float]) -> int:
        """How many trials come before the one after it: what seems to be needed, but neither many more nor very few."""
        wanted = max(self._needed(values), look + max(1, ceil(look * _LEAST)))
        return min(trials, wanted, max(look + 1, ceil(look * _GROWTH)))

    def is_met(self, values: Sequence[float]) -> bool:
        """Whether these trials are enough."""
        if self.until is None or not len(values) or self._needed(values) > len(values):
            return False
        return stopping_interval(values, self.confidence).reach <= self.until * (1 + _ROUNDING)

    def _needed(self, values: Sequence[float]) -> int:
        """About how many trials it takes, if they scatter as these do, by the normal approximation."""
        if self.until is None or len(values) < 2:
            return 0
        spread = float(np.std(values, ddof=1))
        needed = draws_needed(spread, self.until, self.confidence) if spread else 0
        if min(values) < 0 or max(values) > 1:
            return needed
        mean = float(np.mean(values))
        # What no draw has shown: rule_of_three(n) is proportional to 1/n where it is below 1.
        unseen = max(mean, 1 - mean) * rule_of_three(10**6, self.confidence) * 10**6 / self.until
        return max(needed, ceil(unseen * (1 - _ROUNDING)))
