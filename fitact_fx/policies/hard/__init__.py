"""The policies that a scheme can leave in place. One file each; the file's name is the policy's.

Each file offers its policy as `POLICY`, with its default numbers.
"""

import dataclasses
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from fitact_fx.errors import RecipeError, known
from fitact_fx.policies.feature_maps import FeatureMaps
from fitact_fx.policies.limits import Policy

_TOLD = {field.name for field in dataclasses.fields(FeatureMaps)}  # by the graph, and so no options


def names() -> tuple[str, ...]:
    """Every hard policy there is: the modules of this package."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str, numbers: Mapping[str, float] | None = None) -> Policy:
    """The hard policy of that name, with these numbers in place of its own; RecipeError lists the valid names."""
    if name not in names():
        raise RecipeError(known("policy", name, names()))
    policy = import_module(f"{__name__}.{name}").POLICY
    for given in sorted(set(numbers or ()) - set(numbers_of(policy))):
        raise RecipeError(known(f"number of the policy {name}", given, numbers_of(policy)))
    return cast(Policy, dataclasses.replace(policy, **(numbers or {})))


def numbers_of(policy: Policy) -> dict[str, float]:
    """The numbers that `named` takes, as they are in this policy; what the graph told it is none of them."""
    told: Any = policy
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(told) if field.name not in _TOLD}
