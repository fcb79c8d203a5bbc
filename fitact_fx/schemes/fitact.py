"""FitAct (DATE 2022, arXiv 2112.13544): every neuron has its own bound, learned after training."""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.learning import Learning, Record, learn_bounds
from fitact_fx.options import check_type
from fitact_fx.policies import Policy
from fitact_fx.sites import Site
from fitact_fx.spec import Spec

_DEFAULT = Learning()


@dataclass(frozen=True)
class FitAct:
    """One learned bound per neuron (or channel, or layer), zero beyond it; `learning` says how they are learned.

    RecipeError for a `learning` that is no `Learning`.
    """

    granularity: str = "neuron"
    policy: str | Policy = "zero"
    learning: Learning = _DEFAULT
    name = "fitact"

    def __post_init__(self) -> None:
        check_type(self, Learning, "learning")

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Every site alike."""
        spec = Spec(granularity.named(self.granularity), policies.named(self.policy), learned=True)
        return {site.name: spec for site in sites}

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Record:
        """Learn every bound with the weights frozen; see `fitact_fx.learning`."""
        return learn_bounds(hard, data, self.learning, max_drop, seed)


SCHEME = FitAct()
