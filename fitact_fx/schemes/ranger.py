"""Ranger (Chen, Li, Pattabiraman, arXiv 2003.13874): the profiled range of each layer, and a clamp to it.

The paper also restricts the operators that follow an activation (pooling, reshape, concatenation) to
the same range. Here that is implied, as long as only stored words go wrong: what pools, moves or joins
clamped values stays inside their bounds. The profile is the extremes over the calibration data; the
paper's percentiles are not offered.
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.errors import RecipeError
from fitact_fx.learning import Record
from fitact_fx.sites import Site
from fitact_fx.spec import Spec


@dataclass(frozen=True)
class Ranger:
    """One profiled bound per layer; a value beyond it becomes the bound. Nothing is learned."""

    granularity: str = "layer"
    policy: str = "clamp"
    name = "ranger"

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Every site alike."""
        spec = Spec(granularity.named(self.granularity), policies.named(self.policy), learned=False)
        return {site.name: spec for site in sites}

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Record:
        """Raises RecipeError: Ranger's bounds are what calibration saw."""
        raise RecipeError(
            "ranger learns nothing: its bounds are the ranges that fitact_fx.calibrate saw;\n"
            '  leave post_train out, or harden with scheme="fitact"'
        )


SCHEME = Ranger()
