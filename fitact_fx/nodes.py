"""Reading one node of a graph: what it calls, and with which arguments."""

from torch import nn
from torch.fx import GraphModule, Node


def called_module(node: Node) -> nn.Module:
    """The module a call_module node calls."""
    return owning_module(node).get_submodule(str(node.target))


def owning_module(node: Node) -> GraphModule:
    """The GraphModule whose graph this node is in."""
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError(f"the graph of node {node.name} belongs to no GraphModule, so its modules cannot be read")
    return owner


def called_name(node: Node) -> str:
    """The function's or method's own name: `relu_`, `add`, `view`."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def operator_name(node: Node) -> str:
    """One word for all spellings: `x.flatten(1)`, `torch.flatten(x, 1)` and `nn.Flatten()` are `flatten`."""
    if node.op == "call_module":
        return type(called_module(node)).__name__.lower()
    return called_name(node).strip("_")


def argument(node: Node, position: int, name: str) -> object:
    """An argument of a call, by place or by name; None if it is not given."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)
