"""A lowered model with a guard, whose clean parameters are told before its graph runs.

In a compiled graph the check of a weight becomes part of the copy that the compiler makes of it, element by element
and in the order of the copy: up to twenty times as long as to look for the extremes. So there are two graphs, with
the checks and without; the second runs where every parameter was found to be within its limits.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fitact_fx.parameter_limits import Limits, can_be_asked
from fitact_fx.plain_calls import CHECK


class Checked(nn.Module):
    """Calls `unchecked` where nothing is outside of the limits, and `checked`, which removes what is, otherwise.

    Both are compiled forms of graphs over the same memory, that of the module `memory`. Where that was exchanged (by
    `.to`, or an assignment) and where nobody can ask what a parameter holds, `checked` runs.
    """

    def __init__(
        self, memory: nn.Module, checked: Any, unchecked: Any, limits: Sequence[tuple[Limits, nn.Parameter]]
    ) -> None:
        super().__init__()
        self._orig_mod = memory  # as torch.compile calls what it wraps
        self._calls = (checked, unchecked)
        self._limits = tuple(limits)
        self._held = tuple(
            (table, name, tensor)
            for module in memory.modules()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        checked, unchecked = self._calls
        return (unchecked if self._is_clean() else checked)(*args, **kwargs)

    def _is_clean(self) -> bool:
        """Whether every parameter can be asked, and is within its limits."""
        if torch.compiler.is_compiling() or any(table.get(name) is not held for table, name, held in self._held):
            return False
        return all(can_be_asked(each) and limits.hold(each.detach()) for limits, each in self._limits)

    def __getattr__(self, name: str) -> Any:
        """What the graph has, this has, as what torch.compile returns does: a copy of it is one of the graph."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)


def without_checks(lowered: GraphModule) -> GraphModule:
    """A graph over the same memory that uses every parameter as it is."""
    graph = copy.deepcopy(lowered.graph)
    for node in reversed(graph.nodes):
        if CHECK in node.meta:
            if node.users:
                node.replace_all_uses_with(node.args[1])  # torch.where(inside, parameter, 0)
            graph.erase_node(node)
    return GraphModule(lowered, graph, type(lowered).__name__)
