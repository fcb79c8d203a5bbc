"""What a scheme decides for one site."""

from dataclasses import dataclass

from fitact_fx.granularity import Granularity
from fitact_fx.policies import Policy


@dataclass(frozen=True)
class Spec:
    """How one site is bounded: how many bounds, what happens beyond them, and whether they are learned."""

    granularity: Granularity
    policy: Policy
    learned: bool = False
