"""Arguments and results of a model: from its own signature to nodes of a graph, and back."""

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from inspect import Parameter as Argument
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from fitact_fx.errors import TracingError

CONSTANTS = (type(None), bool, int, float, str)
"""What an argument may be besides tensors; tracing fixes such an argument to the value it saw."""


def require_default(value: object, default: object, name: str) -> None:
    """Stands in the graph behind an argument that tracing fixed to one value."""
    if value is not default and (isinstance(value, Tensor) or value != default):
        raise TracingError(
            f"argument {name!r} was fixed to its default {default!r} when the model was traced;\n"
            f"  leave it out, or wrap the model in a module whose forward passes the value you want"
        )


def require_same(value: object, fixed: object, name: str) -> None:
    """Stands in the graph behind an argument that was fixed to what the example inputs had there."""
    if value is not fixed and (isinstance(value, Tensor) or value != fixed):
        raise TracingError(
            f"argument {name!r} was fixed to {fixed!r}, which it is in the example inputs;\n"
            "  pass that value, or trace or harden again with example_inputs that have the one you want"
        )


def require_given(value: object, _: None, name: str) -> None:
    """Stands in the graph behind an argument that forward asks about: it was answered as for a tensor."""
    if not isinstance(value, Tensor):
        raise TracingError(
            f"argument {name!r} is {value!r}, and the graph was made for a tensor there;\n"
            f"  trace or harden again with example_inputs that have {value!r} for {name!r}"
        )


def require_contents(value: Any, contents: object, name: str) -> None:
    """Stands in the graph behind a container: as long as in the example inputs, a dict with the same keys."""
    if contents_of(value) != contents:
        what = f"the keys {contents}" if isinstance(contents, list) else f"{contents} values"
        raise TracingError(
            f"argument {name!r} had {what} in the example inputs, and now has other ones;\n"
            "  trace or harden again with example_inputs that have those"
        )


def contents_of(container: Any) -> object:
    """The keys of a dict, the length of another container."""
    return list(container) if isinstance(container, dict) else len(container)


CHECKS = (require_default, require_same, require_given, require_contents)
"""Calls in a graph that check an argument and give nothing."""


def arguments_of(model: nn.Module) -> dict[str, Argument]:
    """The arguments of the model's own `forward`, in order."""
    return dict(inspect.signature(model.forward).parameters)


def placeholders(graph: Graph, arguments: Mapping[str, Argument]) -> dict[str, Node]:
    """One placeholder per argument, with its default; `*args` and `**kwargs` keep their stars."""
    stars: dict[object, str] = {Argument.VAR_POSITIONAL: "*", Argument.VAR_KEYWORD: "**"}
    made = {}
    for name, argument in arguments.items():
        default = () if argument.default is Argument.empty else (argument.default,)
        # A default of any other type has no spelling in the graph's code.
        if default and not isinstance(default[0], (*CONSTANTS, tuple, list, torch.dtype)):
            raise TracingError(
                f"the default of argument {name!r} is {default[0]!r}, which a graph cannot hold;\n"
                "  use None, a number or a string, and make the object in forward"
            )
        made[name] = graph.create_node("placeholder", stars.get(argument.kind, "") + name, default)
    return made


def leaves_of(value: Any, take: Callable[[Any], Any]) -> Any:
    """`value` with each leaf replaced by `take(leaf)`; containers become plain ones that a graph can hold.

    Lists, tuples, named tuples and dicts stay what they are; a dataclass (also one that is a dict, as in
    Hugging Face's transformers) becomes `Built`.
    """
    if isinstance(value, Built):
        return Built(value.type, {name: leaves_of(each, take) for name, each in value.fields.items()})
    if isinstance(value, OrderedDict) and not dataclasses.is_dataclass(value):
        return Built(type(value), {key: leaves_of(each, take) for key, each in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        return Built(type(value), {name: leaves_of(each, take) for name, each in fields.items()})
    if isinstance(value, dict):
        return {key: leaves_of(each, take) for key, each in value.items()}
    if isinstance(value, tuple | list):
        inside = [leaves_of(each, take) for each in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    return take(value)


@dataclasses.dataclass(frozen=True)
class Built:
    """A dataclass to be made from its fields when the graph runs, or a dict of another type from its items."""

    type: type
    fields: Mapping[str, Any]

    def arguments(self, fields: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the type is called with to make it of these."""
        return ((), fields) if dataclasses.is_dataclass(self.type) else (([*fields.items()],), {})


def made(value: Any) -> Any:
    """`value` with every `Built` made into its dataclass."""
    if isinstance(value, Built):
        args, named = value.arguments({name: made(each) for name, each in value.fields.items()})
        return value.type(*args, **named)
    if isinstance(value, dict):
        return {key: made(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        inside = [made(each) for each in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    return value


def as_argument(graph: Graph, value: Any) -> Any:
    """What `leaves_of` gave, with nodes for leaves, as an argument of a node of `graph`."""
    if isinstance(value, Built):
        return graph.call_function(
            value.type, *value.arguments({name: as_argument(graph, each) for name, each in value.fields.items()})
        )
    if isinstance(value, dict):
        return {key: as_argument(graph, each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        inside = [as_argument(graph, each) for each in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    return value
