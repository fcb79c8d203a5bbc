"""Activations that are in a model and are no sites: where they hide, for whoever wants to know what stays open."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType

from torch import nn
from torch.fx import GraphModule, Node

from fitact_fx.kinds import KINDS
from fitact_fx.nodes import called_module
from fitact_fx.source import owner_path, source_line
from fitact_fx.traced import TracedModule, joined, nodes_in_call_order, parts
from fitact_fx.unseen import UnseenCode

_MODULES = tuple(kind.module for kind in KINDS)
_WORDS = (
    frozenset[str]().union(*(kind.methods for kind in KINDS))
    | {function.__name__ for kind in KINDS for function in kind.functions}
    | {module.__name__ for module in _MODULES}
)
_NOT_LOOKED_INTO = ("torch", "_operator", "math", "fitact_fx")


@dataclass(frozen=True)
class Limit:
    """Something that cannot be protected: where, and why."""

    where: str
    why: str
    inside: bool = False  # an activation that runs, out of reach: not one that never runs


def untraced_activations(model: nn.Module) -> Iterator[Limit]:
    """The activation modules of a model that has no graph."""
    for name, module in model.named_modules():
        if isinstance(module, _MODULES):
            yield Limit(name or "the model itself", f"{type(module).__name__}: out of reach without a graph")


def hidden_activations(model: nn.Module, graph_module: GraphModule) -> Iterator[Limit]:
    """What the graph of `model` calls whole, has no bounds for, or never calls."""
    called: set[str] = set()
    for path, node in nodes_in_call_order(graph_module):
        if node.op == "call_module" and not isinstance(called_module(node), UnseenCode):
            called.update(joined(path, str(node.target), name) for name, _ in called_module(node).named_modules())
            yield from _in_leaf(path, node)
        called.update(name for name in (node.meta.get("leaf"), owner_path(node)) if name)
    if isinstance(graph_module, TracedModule):
        called.update(parts(graph_module))
        for path, why in graph_module.unseen.items():
            yield Limit(path or "the model itself", f"its code could not be seen: {why.splitlines()[0]}", inside=True)
    yield from _in_wrapped_functions(graph_module)
    for name, module in model.named_modules():
        if isinstance(module, _MODULES) and name not in called:
            yield Limit(name, f"{type(module).__name__}: forward does not call it in evaluation mode")


def _in_leaf(path: str, node: Node) -> Iterator[Limit]:
    """A module called whole, unless it is an activation itself, or code whose children are graphs."""
    module = called_module(node)
    if isinstance(module, _MODULES) or parts(module):
        return
    inside = Counter(type(each).__name__ for each in module.modules() if isinstance(each, _MODULES))
    if inside:
        what = ", ".join(f"{count} {name}" for name, count in inside.items())
        why = f"{type(module).__name__} is called whole: {what} inside it cannot be bounded"
        yield Limit(joined(path, str(node.target)), why, inside=True)


def _in_wrapped_functions(graph_module: GraphModule) -> Iterator[Limit]:
    """Python functions that are one node of the graph (torch.fx.wrap) and name an activation."""
    calls: dict[FunctionType, list[Node]] = {}
    for _, node in nodes_in_call_order(graph_module):
        if node.op == "call_function" and isinstance(node.target, FunctionType):
            calls.setdefault(node.target, []).append(node)
    for function, nodes in calls.items():
        names = sorted(_activations_named(function, set()))
        if names:
            times = f", called {len(nodes)} times," if len(nodes) > 1 else ""
            yield Limit(
                _place(nodes[0]),
                f"{function.__name__} is a wrapped function{times} with {', '.join(names)} inside",
                inside=True,
            )


def _activations_named(function: FunctionType, seen: set[FunctionType]) -> set[str]:
    """The activations that a function, or a Python function it calls, mentions."""
    if function in seen or (function.__module__ or "").partition(".")[0] in _NOT_LOOKED_INTO:
        return set()
    seen.add(function)
    names = set(_names(function.__code__))
    found = names & _WORDS
    for name in names:
        called = function.__globals__.get(name)
        if isinstance(called, FunctionType):
            found |= _activations_named(called, seen)
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _place(node: Node) -> str:
    return str(node.target) if node.op == "call_module" else source_line(node)
