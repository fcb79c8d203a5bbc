"""FitAct (DATE 2022, arXiv 2112.13544): every neuron has its own bound, learned after training."""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.learning import Record
from fitact_fx.sites import Site
from fitact_fx.spec import Spec


@dataclass(frozen=True)
class FitAct:
    """One learned bound per neuron (or channel, or layer), zero beyond it."""

    granularity: str = "neuron"
    policy: str = "zero"
    name = "fitact"

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Every site alike."""
        spec = Spec(granularity.named(self.granularity), policies.named(self.policy), learned=True)
        return {site.name: spec for site in sites}

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Record:
        """Learn the bounds."""
        return Record(0)


SCHEME = FitAct()
