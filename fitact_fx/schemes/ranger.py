"""Ranger (Chen, Li, Pattabiraman, arXiv 2003.13874): the profiled range of each layer, and a clamp to it.

The range is carried on, as the paper's rules say: a max-pool, average-pool (also one written as `mean`) or reshape
behind a bounded value gets the same bounds, a concatenation the least lower and the greatest upper one of what it
joins. So what goes wrong in such a call is clamped as well. Which calls qualify is told in `fitact_fx.followers`.

The range is that of the extremes over the calibration data, or of a percentile, in (0, 100]: at least so many % of
the values lie at the upper bound or below it, and, where an activation has two sides, at least as many at the
lower one or above it. It is found in two passes over the data and exact to (greatest - least) / 2048.
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.errors import RecipeError
from fitact_fx.followers import followers
from fitact_fx.learning import Record
from fitact_fx.options import check_flags, check_numbers
from fitact_fx.policies import FeatureMaps, Policy
from fitact_fx.sites import Site
from fitact_fx.spec import PERCENTILE, Spec


@dataclass(frozen=True)
class Ranger:
    """One profiled bound per layer; a value beyond it becomes the bound. Nothing is learned.

    `percentile`: see the head of this file; RecipeError for one outside (0, 100]. `follow`: whether pools, reshapes
    and concatenations behind the sites are bounded too. Those always have one range for the whole call, also under
    another `granularity`, and clamp where `policy` needs feature maps, which a reshape does not have.
    """

    granularity: str = "layer"
    policy: str | Policy = "clamp"
    percentile: float = 100.0
    follow: bool = True
    name = "ranger"

    def __post_init__(self) -> None:
        check_numbers(self, PERCENTILE, "percentile")
        check_flags(self, "follow")

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Every site alike, and what follows them."""
        policy = policies.named(self.policy)
        own = Spec(granularity.named(self.granularity), policy, percentile=self.percentile)
        specs = {site.name: own for site in sites}
        if not self.follow:
            return specs
        keeping = policies.named("clamp") if isinstance(policy, FeatureMaps) else policy
        carried = {
            name: Spec(granularity.named("layer"), keeping, carries=each.carries, includes_zero=each.includes_zero)
            for name, each in followers(graph_module, sites).items()
        }
        return specs | carried

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Record:
        """Raises RecipeError: Ranger's bounds are what calibration saw."""
        raise RecipeError(
            "ranger learns nothing: its bounds are the ranges that fitact_fx.calibrate saw;\n"
            '  leave post_train out, or harden with scheme="fitact"'
        )


SCHEME = Ranger()
