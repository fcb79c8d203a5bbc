"""Reading one node of a graph: what it calls, and with which arguments."""

import inspect
import itertools
import operator
from collections.abc import Container
from types import FunctionType

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from fitact_fx.parameter_limits import Limits

_IN_PLACE_OPERATORS = frozenset("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor setitem __setitem__".split())


def called_module(node: Node) -> nn.Module:
    """The module a call_module node calls."""
    return owning_module(node).get_submodule(str(node.target))


def is_stored(node: Node) -> bool:
    """Whether this node gives a tensor of the model as it is: read, or read and checked against its limits."""
    return node.op == "get_attr" or (node.op == "call_module" and isinstance(called_module(node), Limits))


def stored_at(node: Node) -> str:
    """The name, in this node's graph, of the tensor that such a node gives."""
    return str(node.target if node.op == "get_attr" else node.all_input_nodes[0].target)


def owning_module(node: Node) -> GraphModule:
    """The GraphModule whose graph this node is in."""
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError(f"the graph of node {node.name} belongs to no GraphModule, so its modules cannot be read")
    return owner


def called_name(node: Node) -> str:
    """The function's, method's or ATen operator's own name: `relu_`, `add`, `view`."""
    if isinstance(node.target, OpOverload):
        return str(node.target.overloadpacket.__name__)
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def operator_name(node: Node) -> str:
    """One word for all spellings: `x.flatten(1)`, `torch.flatten(x, 1)` and `nn.Flatten()` are `flatten`.

    A function that is not torch's own keeps its full name: a user's `split` may do anything.
    """
    if node.op == "call_module":
        return type(called_module(node)).__name__.lower()
    if node.target is operator.getitem and is_attention(node.args[0]):
        return "attention" if node.args[1] == 0 else "getitem"
    if isinstance(node.target, FunctionType) and not f"{node.target.__module__}.".startswith("torch."):
        return f"{node.target.__module__}.{node.target.__qualname__}"
    return called_name(node).strip("_")


def is_attention(node: object) -> bool:
    """Whether this is a call of nn.MultiheadAttention, which gives values and weights."""
    return (
        isinstance(node, Node) and node.op == "call_module" and isinstance(called_module(node), nn.MultiheadAttention)
    )


def argument(node: Node, position: int, name: str) -> object:
    """An argument of a call, by place or by name; None if it is not given."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def inplace_position(node: Node) -> int:
    """Where this call's `inplace` flag stands. Built-in functions have none and end in an underscore instead."""
    parameters = list(inspect.signature(node.target).parameters) if isinstance(node.target, FunctionType) else []
    return parameters.index("inplace") if "inplace" in parameters else len(node.args)


def overwrites_input(node: Node) -> bool:
    """Whether this call changes the memory of its first input (a flag that is no constant counts as set)."""
    if node.op == "call_module":
        module = called_module(node)
        ignores_flag = isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout)
        return bool(getattr(module, "inplace", False)) and not ignores_flag
    if node.op not in ("call_function", "call_method"):
        return False
    name = called_name(node)
    if name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__")):
        return True
    return bool(argument(node, inplace_position(node), "inplace")) or node.kwargs.get("out") is not None


def is_foreign(node: Node) -> bool:
    """Whether this calls code that is neither torch's nor ours, as one node: it may do anything, also to its inputs."""
    if node.op == "call_module":
        owner = type(called_module(node)).__module__
    elif node.op == "call_function" and isinstance(node.target, FunctionType):
        owner = node.target.__module__
    else:
        return False
    return not f"{owner}.".startswith(("torch.", "fitact_fx."))


def free_name(wanted: str, taken: Container[str], reserved: Container[str] = ()) -> str:
    """`relu`, or if that is taken the first of `relu_1`, `relu_2`, ... that is neither taken nor reserved."""
    if wanted not in taken:
        return wanted
    numbered = (f"{wanted}_{count}" for count in itertools.count(1))
    return next(name for name in numbered if name not in taken and name not in reserved)
