"""The fast path of a lowered guard: a graph without checks, for parameters that were found to be clean before.

A compiler makes the check of a weight part of the copy that it takes of it, element by element and in the order of
the copy. To compare the extremes of each weight with its limits before is cheaper: ResNet-50, at a batch of 128, takes
1.06 times as long as without a guard (docs/paper.md), and took 1.43 times with all checks in the graph.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fitact_fx.parameter_limits import Limits, can_be_asked
from fitact_fx.plain_calls import CHECK

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class FastPath:
    """The `forward` of a lowered guard: the graph without checks where all parameters are clean, else the other one.

    `lowered` is the graph with checks, `checked` its compiled form. The fast graph has references of its own to the
    same modules and tensors; so where one was replaced (by `.to`, or an assignment) since, `checked` runs. So it
    does where nobody can ask what a parameter holds, and where the whole graph has hooks.
    """

    def __init__(self, lowered: GraphModule, checked: Callable[..., Any], backend: str) -> None:
        graph, self.limits = _without_checks(lowered)
        self.checked = checked
        compiled: Any = torch.compile(graph, backend=backend, fullgraph=True)
        self.unchecked: Callable[..., Any] = compiled.forward
        self.hooks = tuple(getattr(lowered, name) for name in _HOOKS)
        self.held = tuple(
            (table, name, held)
            for module in lowered.modules()
            for table in (module._modules, module._parameters, module._buffers)
            for name, held in table.items()
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.unchecked if self.is_open() else self.checked)(*args, **kwargs)

    def is_open(self) -> bool:
        """Whether the fast graph computes what the other one does."""
        if torch.compiler.is_compiling() or any(self.hooks):
            return False
        if any(table.get(name) is not held for table, name, held in self.held):
            return False
        return all(can_be_asked(each) and limits.hold(each.detach()) for limits, each in self.limits)


def _without_checks(lowered: GraphModule) -> tuple[GraphModule, tuple[tuple[Limits, nn.Parameter], ...]]:
    """A graph over the same memory that uses every parameter as it is, and what it does not check."""
    graph, limits = copy.deepcopy(lowered.graph), []
    for node in reversed(graph.nodes):
        if CHECK not in node.meta:
            continue
        if node.users:  # what was left of the parameter
            assert node.target is torch.where
            parameter = node.args[1]
            limits.append((node.meta[CHECK], operator.attrgetter(parameter.target)(lowered)))
            node.replace_all_uses_with(parameter)
        graph.erase_node(node)
    return GraphModule(lowered, graph, type(lowered).__name__), tuple(limits)
