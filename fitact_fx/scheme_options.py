"""A scheme's options as JSON holds them, and the scheme with such options again."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fitact_fx import policies


def plain_options(value: Any) -> dict[str, Any]:
    """Field name -> its value; that of a policy is its name and numbers, that of another dataclass its own fields."""
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if policies.is_hard(value):
        return {"name": value.name, "numbers": policies.numbers_of(value)}
    return plain_options(value) if dataclasses.is_dataclass(value) else value


def with_options(value: Any, options: Mapping[str, Any]) -> Any:
    """The same dataclass with these options, as `plain_options` wrote them."""
    return dataclasses.replace(value, **{name: _restored(getattr(value, name), options[name]) for name in options})


def _restored(default: Any, option: Any) -> Any:
    if isinstance(default, str) and isinstance(option, Mapping):
        return policies.named(option["name"], option["numbers"])
    return with_options(default, option) if dataclasses.is_dataclass(default) else option
