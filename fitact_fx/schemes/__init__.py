"""Schemes: who decides granularity, policy and bound values. One file each; the file's name is the scheme's.

A scheme decides and never edits a graph: `place` says what each site gets, and `fit`, where a
scheme learns, sets bound values. Each file offers its scheme as `SCHEME`, with its default options. A `policy` is a
name or a value, such as `BackFlip(near=4.0)`; see `fitact_fx.policies`.
"""

import pkgutil
from importlib import import_module
from typing import Any, Protocol, cast

from torch.fx import GraphModule

from fitact_fx.errors import RecipeError, known
from fitact_fx.sites import Site
from fitact_fx.spec import Spec


class Outcome(Protocol):
    """What every scheme's record tells: accuracies and drops as shares of the held-out samples; `str` is one line."""

    @property
    def clean_accuracy(self) -> float: ...
    @property
    def drop(self) -> float: ...
    @property
    def held_out(self) -> int: ...


class Scheme(Protocol):
    """What `harden` needs to know; implementations are frozen dataclasses whose fields are their options."""

    @property
    def name(self) -> str: ...

    def place(self, sites: tuple[Site, ...], graph_module: GraphModule) -> dict[str, Spec]:
        """Site name -> how it is bounded; a site left out stays unbounded."""

    def fit(self, hard: GraphModule, data: Any, max_drop: float, seed: int) -> Outcome:
        """Learn the bounds of a calibrated model; RecipeError if this scheme learns nothing."""


def names() -> tuple[str, ...]:
    """Every scheme there is: the modules of this package."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> Scheme:
    """The scheme of that name with its default options; RecipeError lists the valid ones."""
    if name not in names():
        raise RecipeError(known("scheme", name, names()))
    return cast(Scheme, import_module(f"{__name__}.{name}").SCHEME)
