"""Clip-Act (FT-ClipAct: Hoang, Hanif, Shafique, DATE 2020, arXiv 1912.00941): one threshold per layer, searched.

A value beyond its layer's threshold becomes 0. The thresholds are searched with faults in memory, by the area
under accuracy against fault rate; see `fitact_fx.searching`. `ClipAct(share=0.5)` searches nothing and takes
that share of every profiled maximum.
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fitact_fx import granularity, policies
from fitact_fx.budget import Search
from fitact_fx.errors import RecipeError
from fitact_fx.options import check_numbers, check_type
from fitact_fx.policies import Policy
from fitact_fx.searching import Searched, search_thresholds
from fitact_fx.sites import Site
from fitact_fx.spec import PART, Spec

_DEFAULT = Search()


@dataclass(frozen=True)
class ClipAct:
    """One threshold per layer, zero beyond it; `search` says what is spent on finding them.

    `share`, above 0 and up to 1: no search, but this part of the profiled maximum. RecipeError for another one, and
    for a `search` that is no `Search`.
    """

    granularity: str = "layer"
    policy: str | Policy = "zero"
    search: Search = _DEFAULT
    share: float | None = None
    name = "clip_act"

    def __post_init__(self) -> None:
        check_type(self, Search, "search")
        if self.share is not None:
            check_numbers(self, PART, "share")

    @classmethod
    def thorough(cls) -> "ClipAct":
        """About thirteen times the default budget: more draws, four times the images, one more round."""
        return cls(search=Search(draws=12, images=256, rounds=3))

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Every site alike."""
        spec = Spec(
            granularity.named(self.granularity),
            policies.named(self.policy),
            learned=self.share is None,
            share=1.0 if self.share is None else self.share,
        )
        return {site.name: spec for site in sites}

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Searched:
        """Search every threshold with the weights frozen. Raises RecipeError where a share was given."""
        if self.share is not None:
            raise RecipeError(
                f"clip_act with share={self.share:g} learns nothing: its bounds are that part of the ranges seen;\n"
                "  leave post_train out, or leave the share out to search the thresholds"
            )
        return search_thresholds(hard, data, self.search, max_drop, seed)


SCHEME = ClipAct()
