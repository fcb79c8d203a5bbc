"""ProAct (Mousavi et al., arXiv 2406.06313): bounds per neuron at the end, per layer before, learned from the back."""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.options import SHARE, check_numbers, check_type
from fitact_fx.places import ACTIVATIONS
from fitact_fx.policies import Policy
from fitact_fx.progression import Progress, Progressive, learn_from_the_back
from fitact_fx.sites import Site
from fitact_fx.spec import Spec

_DEFAULT = Progressive()


@dataclass(frozen=True)
class ProAct:
    """`last` at the last activation and what is bounded behind it, `elsewhere` before; zero beyond.

    `tolerance`: how far, as a share, the clean accuracy may move in either direction from what it was with the
    calibrated bounds; `learning` says how they are learned. RecipeError for a tolerance that is no share, and for a
    `learning` that is no `Progressive`.
    """

    last: str = "neuron"
    elsewhere: str = "layer"
    policy: str | Policy = "zero"
    tolerance: float = 0.002
    learning: Progressive = _DEFAULT
    name = "proact"

    def __post_init__(self) -> None:
        check_numbers(self, SHARE, "tolerance")
        check_type(self, Progressive, "learning")

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """One bound for each site but the last ones."""
        policy = policies.named(self.policy)
        activations = [number for number, site in enumerate(sites) if ACTIVATIONS in site.places]
        first = max(activations, default=len(sites) - 1)
        return {
            site.name: Spec(granularity.named(self.last if number >= first else self.elsewhere), policy, learned=True)
            for number, site in enumerate(sites)
        }

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Progress:
        """Learn the bounds from the back, one site at a time; see `fitact_fx.progression`."""
        return learn_from_the_back(hard, data, self.learning, self.tolerance, max_drop, seed)


SCHEME = ProAct()
