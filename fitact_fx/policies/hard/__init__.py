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


def is_hard(value: object) -> bool:
    """Whether this is a hard policy of this package, whatever its numbers are."""
    name = getattr(value, "name", None)
    return name in names() and type(value) is type(_offered(name))


def named(given: str | Policy, numbers: Mapping[str, float] | None = None) -> Policy:
    """The hard policy of that name, with these numbers in place of its own; one that is given itself stays as it is.

    RecipeError lists the valid names.
    """
    if is_hard(given):
        return cast(Policy, given)
    if not isinstance(given, str) or given not in names():
        raise RecipeError(known("policy", given, names()))
    policy = _offered(given)
    for wrong in sorted(set(numbers or ()) - set(numbers_of(policy))):
        raise RecipeError(known(f"number of the policy {policy.name}", wrong, numbers_of(policy)))
    return cast(Policy, dataclasses.replace(cast(Any, policy), **(numbers or {})))


def _offered(name: str) -> Policy:
    return cast(Policy, import_module(f"{__name__}.{name}").POLICY)


def numbers_of(policy: Policy) -> dict[str, float]:
    """The numbers that `named` takes, as they are in this policy; what the graph told it is none of them."""
    told: Any = policy
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(told) if field.name not in _TOLD}
