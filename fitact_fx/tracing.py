"""Front end: a model becomes a graph that does what the model does, or the reason why not is said.

`torch.fx` runs `forward` once with stand-ins and records what it sees. What it does not see would be
frozen. Each such case is honoured, or refused by name: what `forward` reads from its surroundings
(`recording`), what depends on the training mode (`modes`), and what changes from run to run (here).
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fitact_fx import refusals
from fitact_fx.aliasing import own_constants
from fitact_fx.ambience import other_autocast, random_states_kept
from fitact_fx.errors import TracingError
from fitact_fx.modes import GraphsDifferError, merge, require_same
from fitact_fx.ownership import owned_copy, skeleton
from fitact_fx.recording import recorded, require_default


def trace(model: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> GraphModule:
    """The model as a graph, with the user's source line on every node.

    The result owns its modules and buffers and shares the Parameters with `model`, under the same
    names; it is in the same training mode, and takes the same arguments. An argument whose default
    is None, a flag, a number or a string is fixed to that default; another value raises an error.
    `example_inputs` (a tuple of positional inputs) are not needed by this front end.

    Values are the model's; a `torch.no_grad` region in forward is not kept, so gradients also flow there.
    Raises TracingError, with the module and the user's line, for what no graph can express.
    """
    del example_inputs
    refusals.refuse_other_things(model)
    root = owned_copy(model)
    known = {*vars(root), *root._parameters, *root._buffers}
    with random_states_kept():
        graph, modes = _graph_for_both_modes(root)
    leaves = {root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    traced = TracedModule.build(root, graph, frozenset(leaves), type(model).__name__, modes)
    own_constants(traced, lambda name: "." not in name and name not in known)
    traced.recompile()
    return traced


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

    held: dict[bool, frozenset[str]]
    allowed: frozenset[bool]
    apart: str


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
        traced.meta["modes"] = modes
        return traced

    def train(self, mode: bool = True) -> "TracedModule":
        """Do what the model does in that mode; TracingError if the graph does not stand for it."""
        modes: Modes = self.meta["modes"]
        if mode not in modes.allowed:
            have = {frozenset((True,)): "training mode", frozenset((False,)): "evaluation mode"}
            raise TracingError(
                f"this graph was traced in {have.get(modes.allowed, 'a mixture of modes')} and cannot change to "
                f"{'training' if mode else 'evaluation'} mode: the model's code takes another way there "
                f"({modes.apart});\n  call model.{'train' if mode else 'eval'}() on the original and trace or "
                "harden it again"
            )
        super().train(mode)
        for name, module in self.named_modules():
            if name in modes.held[mode]:
                module.training = not mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TracedModule":
        """Move or cast. The Parameters are the user's too, so one that changes is replaced here, and not written."""
        own: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if parameter not in own:
                    own[parameter] = _moved(parameter, fn)
                module.register_parameter(name, own[parameter])
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

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
        return copied


def _moved(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """The Parameter itself if `fn` leaves it where and what it is, a new one otherwise."""
    with torch.no_grad():
        moved = fn(parameter)
    if moved is parameter or (moved.dtype == parameter.dtype and moved.device == parameter.device):
        return parameter
    return nn.Parameter(moved, requires_grad=parameter.requires_grad)


def _graph_for_both_modes(root: nn.Module) -> tuple[Graph, Modes]:
    """One graph for both modes, or for the model's own if the two have none in common; its modes are as before."""
    graph = _repeatable(root)
    own = _modes(root)
    after = {mode: _modes_after_train(root, mode) for mode in (True, False)}
    held = {mode: frozenset(name for name in after[mode] if after[mode][name] != mode) for mode in after}
    try:
        graphs = {mode: graph if after[mode] == own else _recorded_in(root, after[mode]) for mode in after}
        _put(root, own)
        merged = merge(root, graphs[True], graphs[False])
        if graph not in graphs.values():
            require_same(root, graph, merged)
    except GraphsDifferError as difference:
        _put(root, own)
        return graph, Modes(held, frozenset(mode for mode in after if after[mode] == own), difference.where)
    return merged, Modes(held, frozenset(after), "")


def _recorded_in(root: nn.Module, modes: dict[str, bool]) -> Graph:
    _put(root, modes)
    try:
        return recorded(root)
    except TracingError as error:
        raise GraphsDifferError(str(error).splitlines()[0]) from error


def _repeatable(root: nn.Module) -> Graph:
    """The graph of `root` in its own modes; TracingError if it comes out differently the second time."""
    graph = recorded(root)
    with other_autocast():
        again = recorded(root)
    try:
        require_same(root, graph, again)
    except GraphsDifferError as difference:
        raise refusals.frozen_state(difference.where) from difference
    return graph


def _modes(root: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in root.named_modules()}


def _put(root: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in root.named_modules():
        module.training = modes.get(name, module.training)


def _modes_after_train(root: nn.Module, mode: bool) -> dict[str, bool]:
    """Puts the modules in the modes that the model's own `train(mode)` gives them."""
    trainable = {parameter: parameter.requires_grad for parameter in root.parameters()}
    root.train(mode)
    for parameter, before in trainable.items():  # the Parameters are the user's, whatever that train does to them
        if parameter.requires_grad != before:
            parameter.requires_grad = before
    return _modes(root)


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


__all__ = ["Modes", "TracedModule", "require_default", "trace"]
