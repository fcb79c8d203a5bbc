"""The partial front end: code that no graph can hold runs as it is, and what it calls becomes graphs.

A module whose `forward` cannot be traced is called whole. Its children are looked at in turn: a child that
can be traced becomes a graph in its parent's place, and one that cannot stays what it is, with its own
children looked at. A child stays also where the unseen code does more with it than call it, or where
it may get arguments other than those it was traced with.
"""

from collections.abc import Mapping
from types import CellType, FunctionType
from typing import Any

from torch import nn
from torch.fx import Graph

from fitact_fx.errors import TracingError
from fitact_fx.frontends.attention import LAYERS
from fitact_fx.frontends.comparing import difference
from fitact_fx.frontends.symbolic import NOTHING, symbolic
from fitact_fx.frontends.uses import more_than_called, questions
from fitact_fx.kinds import module_kind
from fitact_fx.ownership import as_before_if_it_fails, owned_copy
from fitact_fx.places import is_one_operator, places
from fitact_fx.refusals import refuse_hooks
from fitact_fx.signature import arguments_of, placeholders
from fitact_fx.traced import ANY_MODE, TracedModule
from fitact_fx.unseen import UnseenCode

_CODE = "unseen_code"


def partial(
    root: nn.Module, given: Mapping[str, Any] = NOTHING, example_inputs: tuple[Any, ...] | None = None
) -> TracedModule:
    """The graph of `root`, a copy that owns its modules, with calls of the modules that could not be traced.

    `given` are the arguments in an example, see `symbolic`. `unseen` of the result gives for each such module the
    first cause. Raises TracingError with that cause if nothing in the model could be traced, and if the result
    does not give the model's outputs on `example_inputs`.
    """
    _refuse_functions_over_modules(root)
    before = owned_copy(root) if example_inputs is not None else None
    traced = _Partial().trace(root, given)
    if traced.unseen and not places(traced):
        raise TracingError(
            "no part of this model could be traced:\n  " + next(iter(traced.unseen.values())).replace("\n", "\n  ")
        )
    if before is not None and example_inputs is not None:
        told = difference(before, owned_copy(traced), example_inputs)
        if told:
            raise TracingError(
                f"the partial graph does not give the model's own results: {told};\n"
                "  keep what forward changes in buffers, or trace the parts of the model by themselves"
            )
    return traced


def _refuse_functions_over_modules(root: nn.Module) -> None:
    """Python does not copy functions: one that holds a module holds the user's, and would run that."""
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and any(_holds_module(each) for each in value.__closure__ or ()):
                raise TracingError(
                    f"attribute {name!r} of {path or 'the model itself'} is a function that holds a module;\n"
                    "  make it a method, or give the function the module as an argument",
                    path,
                )


def _holds_module(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, nn.Module)
    except ValueError:  # nothing in it
        return False


class _Partial:
    """One copy of a model on its way to be partially traced. A module that is used in several places is traced once."""

    def __init__(self) -> None:
        self.made: dict[nn.Module, nn.Module] = {}
        self.reasons: dict[nn.Module, str] = {}
        self.kept: dict[nn.Module, str] = {}

    def trace(self, root: nn.Module, given: Mapping[str, Any]) -> TracedModule:
        """The graph of `root`, with calls of what could not be traced, whose children are graphs where they can be."""
        traced = self._seen(root, given)
        if traced is None:
            self._replace_children(root)
            traced = _around(root)
        unseen = {} if root not in self.reasons else {"": self.reasons[root]}
        for path, module in traced.named_modules():
            if module in self.reasons:  # each was looked at as a model of its own
                unseen[path] = self.reasons[module].replace("the model itself", f"module {path!r}")
        traced.meta |= {"unseen": unseen, "frontend": "partial"}
        return traced

    def _seen(self, root: nn.Module, given: Mapping[str, Any] = NOTHING) -> TracedModule | None:
        """The graph of `root`, which calls whole what cannot be traced; None, with the reason noted, if that is all."""
        unseen: dict[str, str] = {}
        while True:
            try:
                with as_before_if_it_fails(root):
                    traced = symbolic(root, given, unseen)
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
        self.kept |= more_than_called(unseen, by_others=unseen in self.kept)
        for name, child in list(unseen._modules.items()):
            if child is None:
                continue
            if child not in self.made:
                self.made[child] = self._part(child)
            unseen._modules[name] = self.made[child]

    def _part(self, child: nn.Module) -> nn.Module:
        """A graph in the child's place, or the child itself, with its own children looked at."""
        how = self.kept.get(child)
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
        obstacle = _obstacle(child)
        if obstacle is not None:
            if _holds_something(child):
                self.reasons[child] = obstacle
            return None
        before = {module: dict(vars(module)) for module in child.modules()}
        traced = self._seen(child)
        kept = _kept_in_attributes(before)
        if kept is not None:
            self.reasons[child] = f"its code keeps something in its attribute {kept!r}, which a graph would lose"
            return None
        if traced is None or not places(traced):
            return None
        if is_one_operator(child):
            for node in traced.graph.nodes:  # the child's own call, so its name is the child's
                node.meta["leaf"] = ""
        for name, value in vars(child).items():  # what the unseen code may read of it
            if not hasattr(traced, name):
                setattr(traced, name, value)
        return traced


def _obstacle(child: nn.Module) -> str | None:
    """Why a graph could not stand for this child, whatever its code does."""
    if not isinstance(child, LAYERS):  # which take a mask or none
        optional = [name for name, each in arguments_of(child).items() if each.default is not each.empty]
        if optional:
            return f"code that was not seen may give it {optional[0]!r}, which tracing would fix"
        asked = questions(child)
        if asked is None or asked:
            how = "its source cannot be read" if asked is None else next(iter(asked.values()))
            return f"its code may decide by what it is called with: {how}"
    try:
        refuse_hooks("it", child)
    except TracingError as error:
        return str(error)
    return None


def _kept_in_attributes(before: dict[nn.Module, dict[str, Any]]) -> str | None:
    """The first attribute that was set while the code was traced, each of which is put back; None if there is none."""
    found = None
    for module, attributes in before.items():
        for name, value in list(vars(module).items()):
            if name not in attributes and not name.startswith("_tensor_constant"):
                del vars(module)[name]
                found = found or name
            elif name in attributes and value is not attributes[name]:
                vars(module)[name] = attributes[name]
                found = found or name
    return found


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
