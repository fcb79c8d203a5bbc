"""The symbolic front end: `forward` runs once with stand-ins, and what they see is the graph.

What it does not see would be frozen. Each such case is honoured, or refused by name: what `forward`
reads from its surroundings (`recording`), what depends on the training mode (`modes`), and what
changes from run to run (here).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph

from fitact_fx import refusals
from fitact_fx.aliasing import own_constants
from fitact_fx.ambience import other_autocast, random_states_kept
from fitact_fx.errors import TracingError
from fitact_fx.frontends.attention import along_the_slow_path
from fitact_fx.frontends.recording import recorded
from fitact_fx.modes import GraphsDifferError, merge, require_same
from fitact_fx.ownership import trainability_kept
from fitact_fx.traced import Modes, TracedModule

NOTHING: Mapping[str, Any] = {}


class _Recorder(NamedTuple):
    """How a model is recorded, each time."""

    unseen: frozenset[str]
    given: Mapping[str, Any]

    def __call__(self, root: nn.Module) -> Graph:
        return recorded(root, self.unseen, self.given)


def symbolic(root: nn.Module, given: Mapping[str, Any] = NOTHING, unseen: Mapping[str, str] = NOTHING) -> TracedModule:
    """The graph of `root`, a copy that owns its modules.

    `given` are the arguments in an example, by name: None, flags, numbers and strings among them are fixed to
    what they are there, and arguments that are not among them to their defaults. `unseen` are paths of modules
    to be called whole.

    Raises TracingError, with the module and the user's line, for what no graph can express.
    """
    name = type(root).__name__
    root = along_the_slow_path(root)
    known = {*vars(root), *root._parameters, *root._buffers}
    with random_states_kept():
        graph, modes = _graph_for_both_modes(root, _Recorder(frozenset(unseen), given))
    leaves = {root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    traced = TracedModule.build(root, graph, frozenset(leaves), name, modes)
    own_constants(traced, lambda target: "." not in target and target not in known)
    traced.recompile()
    return traced


def _graph_for_both_modes(root: nn.Module, record: _Recorder) -> tuple[Graph, Modes]:
    """One graph for both modes, or for the model's own if the two have none in common; its modes are as before."""
    graph = _repeatable(root, record)
    own = _modes(root)
    after = {mode: _modes_after_train(root, mode) for mode in (True, False)}
    held = {mode: frozenset(name for name in after[mode] if after[mode][name] != mode) for mode in after}
    try:
        graphs = {mode: graph if after[mode] == own else _recorded_in(root, after[mode], record) for mode in after}
        _put(root, own)
        merged = merge(root, graphs[True], graphs[False])
        if graph not in graphs.values():
            require_same(root, graph, merged)
    except GraphsDifferError as difference:
        _put(root, own)
        return graph, Modes(held, frozenset(mode for mode in after if after[mode] == own), difference.where)
    return merged, Modes(held, frozenset(after), "")


def _recorded_in(root: nn.Module, modes: dict[str, bool], record: _Recorder) -> Graph:
    _put(root, modes)
    try:
        return record(root)
    except TracingError as error:
        raise GraphsDifferError(str(error).splitlines()[0], "") from error


def _repeatable(root: nn.Module, record: _Recorder) -> Graph:
    """The graph of `root` in its own modes; TracingError if it comes out differently the second time."""
    graph = record(root)
    with other_autocast(), torch.set_grad_enabled(not torch.is_grad_enabled()):
        again = record(root)
    try:
        require_same(root, graph, again)
    except GraphsDifferError as difference:
        raise refusals.frozen_state(difference.where, difference.owner) from difference
    return graph


def _modes(root: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in root.named_modules()}


def _put(root: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in root.named_modules():
        module.training = modes.get(name, module.training)


def _modes_after_train(root: nn.Module, mode: bool) -> dict[str, bool]:
    """Puts the modules in the modes that the model's own `train(mode)` gives them."""
    with trainability_kept(root):
        root.train(mode)
    return _modes(root)
