"""A graph as it is pickled: one line per node, which names the lines whose results it takes."""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate, map_arg

_READ = ("leaf", "shape", "stack_trace")  # in a node's meta, by this library; tracers leave more for themselves


class Line(NamedTuple):
    """A node as it is pickled."""

    op: str
    target: Any
    name: str
    args: Any
    kwargs: Any
    type: Any
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Result:
    """Stands, in arguments that are pickled, for the node that is this line of the graph."""

    line: int


@dataclass(frozen=True)
class _Named:
    """Stands for a function of torch that pickle would not find: `torch:ops.aten.relu.default`."""

    path: str


def lines_of(graph: Graph) -> list[Line]:
    """The nodes in their order, in values that can be pickled if the arguments and functions of the graph can be."""
    number: dict[Node, Any] = {node: _Result(line) for line, node in enumerate(graph.nodes)}
    return [
        Line(
            node.op,
            _nameable(node.target),
            node.name,
            map_arg(node.args, number.__getitem__),
            map_arg(node.kwargs, number.__getitem__),
            node.type,
            _lasting(node.meta),
        )
        for node in graph.nodes
    ]


def graph_of(lines: list[Line]) -> Graph:
    """A graph of these nodes."""
    graph, nodes = Graph(), list[Node]()

    def given(each: Any) -> Any:
        return nodes[each.line] if isinstance(each, _Result) else each

    for op, target, name, args, kwargs, kind, meta in lines:
        args, kwargs = map_aggregate((args, kwargs), given)
        target = pkgutil.resolve_name(target.path) if isinstance(target, _Named) else target
        nodes.append(graph.create_node(op, target, args, kwargs, name, kind))
        nodes[-1].meta = meta
    return graph


def _nameable(target: Any) -> Any:
    """The name of an ATen operator, and of a function that torch made in a function (`F.max_pool2d`)."""
    if isinstance(target, OpOverload):
        return _Named(f"torch:ops.{target}")
    if isinstance(target, FunctionType) and "<locals>" in target.__qualname__ and target.__module__ == F.__name__:
        return _Named(f"{target.__module__}:{target.__name__}")
    return target


def _lasting(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What this library reads of a node's meta; the classes in the module stack may be local to a function."""
    stack = {key: (path, str(kind)) for key, (path, kind) in meta.get("nn_module_stack", {}).items()}
    kept = {key: meta[key] for key in _READ if key in meta}
    return kept | ({"nn_module_stack": stack} if "nn_module_stack" in meta else {})
