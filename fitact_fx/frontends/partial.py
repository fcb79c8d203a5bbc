"""The partial front end: code that no graph can hold runs as it is, and what it calls becomes graphs.

A module whose `forward` cannot be traced is called whole. Its children are looked at in turn: a child that
can be traced becomes a graph in its parent's place, and one that cannot stays what it is, with its own
children looked at. A child stays also where the unseen code does more with it than call it, or where
it may get arguments other than those it was traced with.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Graph

from fitact_fx.errors import TracingError
from fitact_fx.frontends.attention import LAYERS
from fitact_fx.frontends.comparing import difference
from fitact_fx.frontends.symbolic import symbolic
from fitact_fx.kinds import module_kind
from fitact_fx.ownership import as_before_if_it_fails, owned_copy
from fitact_fx.places import ONE_OPERATOR, places
from fitact_fx.signature import arguments_of, placeholders
from fitact_fx.traced import ANY_MODE, TracedModule, UnseenCode

_CODE = "unseen_code"


def partial(root: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> TracedModule:
    """The graph of `root`, a copy that owns its modules, with calls of the modules that could not be traced.

    The first cause is the reason that `unseen` gives for each. Raises TracingError with that reason if nothing in
    the model could be traced, and if the result does not give the model's outputs on `example_inputs`.
    """
    before = owned_copy(root) if example_inputs is not None else None
    traced = _Partial().trace(root)
    if traced.unseen and not places(traced):
        raise TracingError(
            "no part of this model could be traced:\n  " + next(iter(traced.unseen.values())).replace("\n", "\n  ")
        )
    if before is not None and example_inputs is not None:
        told = difference(before, owned_copy(traced), example_inputs)
        if told:
            raise TracingError(f"the partial graph does not give the model's own results: {told}")
    return traced


class _Partial:
    """One copy of a model on its way to be partially traced. A module that is used in several places is traced once."""

    def __init__(self) -> None:
        self.made: dict[nn.Module, nn.Module] = {}
        self.reasons: dict[nn.Module, str] = {}

    def trace(self, root: nn.Module) -> TracedModule:
        """The graph of `root`, with calls of what could not be traced, whose children are graphs where they can be."""
        traced = self._seen(root)
        if traced is None:
            self._replace_children(root)
            traced = _around(root)
        unseen = {} if root not in self.reasons else {"": self.reasons[root]}
        for path, module in traced.named_modules():
            if module in self.reasons:  # each was looked at as a model of its own
                unseen[path] = self.reasons[module].replace("the model itself", f"module {path!r}")
        traced.meta |= {"unseen": unseen, "frontend": "partial"}
        return traced

    def _seen(self, root: nn.Module) -> TracedModule | None:
        """The graph of `root`, which calls whole what cannot be traced; None, with the reason noted, if that is all."""
        unseen: dict[str, str] = {}
        while True:
            try:
                with as_before_if_it_fails(root):
                    traced = symbolic(root, unseen)
            except TracingError as error:
                path = error.module or ""
                if not path or path in unseen:
                    self.reasons[root] = str(error)
                    return None
                unseen[path] = str(error)
            else:
                break
        for path, why in unseen.items():
            self.reasons[root.get_submodule(path)] = why
            self._replace_children(root.get_submodule(path))
        return traced

    def _replace_children(self, unseen: nn.Module) -> None:
        """Let the children that can be traced be graphs."""
        more_than_called = _more_than_called(unseen)
        for name, child in list(unseen._modules.items()):
            if child is None:
                continue
            if child not in self.made:
                self.made[child] = self._part(child, more_than_called.get(name))
            unseen._modules[name] = self.made[child]

    def _part(self, child: nn.Module, how: str | None) -> nn.Module:
        """A graph in the child's place, or the child itself, with its own children looked at."""
        if type(child).forward is not nn.Module.forward:  # a ModuleList has none
            part = self._graph_of(child) if how is None else None
            if part is not None:
                return part
            if how is not None and _holds_something(child):
                self.reasons[child] = f"code that was not seen does more with it than call it: {how}"
        self._replace_children(child)
        return child

    def _graph_of(self, child: nn.Module) -> TracedModule | None:
        """The child as a graph, if there is anything in it to protect and it takes any argument that it took before."""
        optional = [name for name, each in arguments_of(child).items() if each.default is not each.empty]
        if optional and not isinstance(child, LAYERS):
            if _holds_something(child):
                self.reasons[child] = f"code that was not seen may give it {optional[0]!r}, which tracing would fix"
            return None
        traced = self._seen(child)
        if traced is None or not places(traced):
            return None
        if isinstance(child, ONE_OPERATOR):
            for node in traced.graph.nodes:  # the child's own call, so its name is the child's
                node.meta["leaf"] = ""
        for name, value in vars(child).items():  # what the unseen code may read of it
            if not hasattr(traced, name):
                setattr(traced, name, value)
        return traced


def _holds_something(module: nn.Module) -> bool:
    """Whether a module that stays unseen is worth a word."""
    return any(True for _ in module.parameters()) or any(module_kind(each) is not None for each in module.modules())


def _around(root: nn.Module) -> TracedModule:
    """A graph that only calls the code of `root`."""
    graph, arguments = Graph(), arguments_of(root)
    given = placeholders(graph, arguments)
    code = UnseenCode(root, tuple((name, argument.kind) for name, argument in arguments.items()))
    graph.output(graph.call_module(_CODE, tuple(given.values())))
    children = frozenset(child for child in root._modules.values() if child is not None)
    root.add_module(_CODE, code.train(root.training))
    traced = TracedModule.build(root, graph, children | {code}, type(root).__name__, ANY_MODE)
    del root._modules[_CODE]
    code.join(traced)
    traced.recompile()
    return traced


def _more_than_called(unseen: nn.Module) -> dict[str, str]:
    """Name of a child -> what the code of `unseen` does with it besides calling it, or reading a value it holds."""
    found: dict[str, str] = {}
    for cls in type(unseen).__mro__:
        if cls.__module__.startswith("torch.nn.modules.module") or cls is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):  # no source to read: a call is what is done with most modules
            continue
        functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name != "__init__"]
        for function in functions:
            found |= {name: how for name, how in _uses(function, unseen) if name not in found}
    return found


def _uses(function: ast.FunctionDef, unseen: nn.Module) -> Iterator[tuple[str, str]]:
    """(child, what is done with it), for what a graph in the child's place could not stand."""
    around = {inner: outer for outer in ast.walk(function) for inner in ast.iter_child_nodes(outer)}
    for node in ast.walk(function):
        name = _attribute_of_self(node)
        if name is None or not isinstance(unseen._modules.get(name), nn.Module):
            continue
        outer, module = around.get(node), unseen._modules[name]
        inner: ast.AST = node
        while isinstance(outer, ast.Attribute) and module is not None and outer.attr in module._modules:
            module = module._modules[outer.attr]
            inner, outer = outer, around.get(outer)
        called = isinstance(outer, ast.Call) and outer.func is inner
        compared = isinstance(outer, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in outer.ops)
        reads = isinstance(outer, ast.Attribute) and _is_held(module, outer.attr)
        if outer is not None and not (called or compared or reads):
            yield name, ast.unparse(outer)


def _attribute_of_self(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _is_held(module: nn.Module | None, name: str) -> bool:
    """Whether the module holds a value, Parameter or buffer of that name, which a graph in its place holds as well."""
    return module is not None and (name in vars(module) or name in module._parameters or name in module._buffers)
