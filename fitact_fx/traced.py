"""The traced model: a graph over a model's own tree of names, which knows the modes it stands for.

A model may hold several graphs: where a module's code could not be seen, its traceable children are
traced models of their own, called *parts* here. Whoever reads or rewrites a graph walks them all.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import PythonCode
from torch.utils.hooks import RemovableHandle

from fitact_fx.errors import TracingError
from fitact_fx.graph_lines import Line, graph_of, lines_of
from fitact_fx.guarded import GUARDED, Exchange
from fitact_fx.nodes import free_name, owning_module
from fitact_fx.ownership import skeleton, trainability_kept
from fitact_fx.unseen import UnseenCode

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Modes(NamedTuple):
    """What a graph knows of training modes.

    `held`: mode -> the modules that stay in the other one, since the model's own `train` keeps them
    there. `allowed`: the modes that the graph stands for; the others go another way at the line `apart`.
    """

    held: Mapping[bool, frozenset[str]]
    allowed: frozenset[bool]
    apart: str


ANY_MODE = Modes({True: frozenset(), False: frozenset()}, frozenset((True, False)), "")


class TracedModule(GraphModule):
    """A GraphModule over a model's own tree of names, which knows the modes it stands for."""

    @classmethod
    def build(
        cls, root: nn.Module, graph: Graph, leaves: frozenset[nn.Module], name: str, modes: Modes
    ) -> "TracedModule":
        """Hang `graph` from the leaves, Parameters and buffers of `root`."""
        bones = skeleton(root, leaves)
        _adopt_tensors(bones, root, graph)
        traced = cls(bones, Graph(), name)
        for child_name, child in bones._modules.items():
            traced.add_module(child_name, child)
        for parameter_name, parameter in bones._parameters.items():
            traced.register_parameter(parameter_name, parameter)
        kept = bones.state_dict().keys()
        for buffer_name, buffer in bones._buffers.items():
            traced.register_buffer(buffer_name, buffer, persistent=buffer_name in kept)
        traced.graph = graph
        traced.meta |= {"modes": modes, "frontend": "symbolic", "unseen": {}, "fixed_type": None}
        return traced

    @property
    def frontend(self) -> str:
        """How the model became a graph: "symbolic", "export" or "partial"."""
        return str(self.meta["frontend"])

    @property
    def unseen(self) -> Mapping[str, str]:
        """Path of a module whose code could not be seen -> why; the children that could be are parts."""
        return MappingProxyType(self.meta["unseen"])

    def train(self, mode: bool = True) -> "TracedModule":
        """Do what the model does in that mode; TracingError, with nothing changed, if a graph does not stand for it."""
        for part in parts(self).values():
            part.require(mode)
        super().train(mode)
        held: frozenset[str] = self.meta["modes"].held[mode]
        for name, module in self.named_modules():
            if name in held:
                module.training = not mode
        for module in self.children():
            if isinstance(module, UnseenCode):
                with trainability_kept(self):
                    module.root.train(mode)  # the model's own, which may keep some modules in another mode
        return self

    def recompile(self) -> PythonCode:
        """The graph as code again; a guard in it leaves nothing exchanged, however its run ends."""
        code = super().recompile()
        if any(GUARDED in node.kwargs for node in self.graph.nodes):
            cls: Any = type(self)  # every GraphModule has a class of its own
            cls.forward = _put_back_if_interrupted(cls.forward)
        return code

    def require(self, mode: bool) -> None:
        """TracingError unless this graph stands for that mode."""
        modes: Modes = self.meta["modes"]
        if mode not in modes.allowed:
            have = {frozenset((True,)): "training mode", frozenset((False,)): "evaluation mode"}
            raise TracingError(
                f"this graph was traced in {have.get(modes.allowed, 'a mixture of modes')} and cannot change to "
                f"{'training' if mode else 'evaluation'} mode: the model's code takes another way there "
                f"({modes.apart});\n  call model.{'train' if mode else 'eval'}() on the original and trace or "
                "harden it again"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TracedModule":
        """Move or cast. The Parameters are the user's too, so one that changes is replaced here, and not written."""
        for part in parts(self).values():
            part.refuse_cast(fn)
        own: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if parameter not in own:
                    own[parameter] = _moved(parameter, fn)
                module.register_parameter(name, own[parameter])
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def refuse_cast(self, fn: Callable[[Tensor], Tensor]) -> None:
        """An exported graph has the types and the device that it was exported with written into it."""
        example: Tensor | None = self.meta["fixed_type"]
        if example is None:
            return
        with torch.no_grad():
            moved = fn(example)
        if moved.dtype != example.dtype or moved.device != example.device:
            raise TracingError(
                f"this graph was exported for {example.dtype} on {example.device}, and cannot become {moved.dtype} on "
                f"{moved.device};\n  move or cast the original model, and trace or harden it again"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "TracedModule":
        copied: TracedModule = super().__deepcopy__(memo)  # type: ignore[assignment]
        kept = self.state_dict().keys()
        # GraphModule's own copy makes every buffer persistent and drops second names.
        for ours, theirs in ((copied._modules, self._modules), (copied._parameters, self._parameters)):
            ours.clear()
            ours.update({name: None if value is None else memo[id(value)] for name, value in theirs.items()})
        copied._buffers.clear()
        for name, buffer in self._buffers.items():
            copied.register_buffer(name, None if buffer is None else memo[id(buffer)], persistent=name in kept)
        for table in _HOOKS:  # which it leaves behind
            setattr(copied, table, copy.deepcopy(getattr(self, table), memo))
        for module in copied._modules.values():
            if isinstance(module, UnseenCode):
                module.join(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the graph itself: GraphModule's own way is to trace its code again, which loses what it is."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        attributes = {name: value for name, value in state.items() if name != "_graph"}
        return _empty, (type(self).__name__,), (attributes, lines_of(self.graph))

    def __setstate__(self, state: tuple[dict[str, Any], list[Line]]) -> None:
        attributes, lines = state
        super().__setstate__(attributes)  # type: ignore[no-untyped-call]
        self.graph = graph_of(lines)
        # Hooks are numbered by process: without this, the next one that is registered could replace one of these.
        taken = [number for module in self.modules() for table in _HOOKS for number in getattr(module, table)]
        RemovableHandle.next_id = max([RemovableHandle.next_id, *(number + 1 for number in taken)])


def _put_back_if_interrupted(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(self, *args, **kwargs)
        except Exception:  # the hooks have seen to it
            raise
        except BaseException:  # Ctrl-C, for one, for which torch calls no hooks
            Exchange.stop(self)
            raise

    # torch.compile counts by code object how often it had to compile anew, and every model would count here.
    run.__code__ = run.__code__.replace()
    return wraps(forward)(run)


def _empty(name: str) -> TracedModule:
    """To be filled by `__setstate__`."""
    return TracedModule(nn.Module(), Graph(), name)


def parts(model: nn.Module) -> dict[str, TracedModule]:
    """Path -> every graph in `model`, the model itself first ("") if it is one."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TracedModule)}


def nodes_in_call_order(model: GraphModule, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """(path of the graph, node) for all graphs: behind a call of code that was not seen follow the parts in it.

    A part that is called by several such modules is visited once.
    """
    yield from _walked(model, prefix, {id(model)})


def _walked(model: GraphModule, prefix: str, visited: set[int]) -> Iterator[tuple[str, Node]]:
    for node in model.graph.nodes:
        yield prefix, node
        if node.op != "call_module":
            continue
        called = model.get_submodule(str(node.target))
        if isinstance(called, UnseenCode):
            called, path = called.root, ""
        else:
            path = str(node.target)
        for name, part in parts(called).items():
            if id(part) not in visited and not _is_inside(name, called, part):
                visited.add(id(part))
                yield from _walked(part, joined(prefix, path, name), visited)


def _is_inside(name: str, called: nn.Module, part: nn.Module) -> bool:
    """Whether this part belongs to another part, whose own graph leads to it."""
    return any(outer and name.startswith(f"{outer}.") and each is not part for outer, each in parts(called).items())


def add_beside(graph_module: GraphModule, node: Node, name: str, module: nn.Module) -> str:
    """Give the graph that `node` is in a module called `name`, a path in the whole; the target to call it by there.

    A name that is taken gets a number, and the modules of a part are named without the part's own path.
    """
    owner = owning_module(node)
    path = next((path for path, part in parts(graph_module).items() if part is owner), "")
    local = name.removeprefix(f"{path}.") if path else name
    target = free_name(local.removeprefix(f"{path}_") if path and local == name else local, dict(owner.named_modules()))
    owner.add_submodule(target, module.train(owner.training))
    return target


def joined(*names: str) -> str:
    """The names that are not empty, with dots between."""
    return ".".join(filter(None, names))


def _moved(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """The Parameter itself if `fn` leaves it where and what it is, a new one otherwise."""
    with torch.no_grad():
        moved = fn(parameter)
    if moved is parameter or (moved.dtype == parameter.dtype and moved.device == parameter.device):
        return parameter
    return nn.Parameter(moved, requires_grad=parameter.requires_grad)


def _adopt_tensors(bones: nn.Module, root: nn.Module, graph: Graph) -> None:
    """Tensors that the graph reads but no module registered: constants made in forward, plain attributes."""
    memo: dict[int, Any] = {}
    for node in graph.nodes:
        owner_path, _, name = str(node.target).rpartition(".")
        if node.op != "get_attr" or hasattr(bones.get_submodule(owner_path), name):
            continue
        value = getattr(root.get_submodule(owner_path), name)
        if isinstance(value, Tensor):
            # A copy: the tensor itself may be the user's, from outside the model. Views keep sharing memory.
            own = copy.deepcopy(value.detach(), memo)
            bones.get_submodule(owner_path).register_buffer(name, own, persistent=False)
        else:
            setattr(bones.get_submodule(owner_path), name, value)
