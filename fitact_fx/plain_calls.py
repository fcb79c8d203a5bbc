"""The guard of a graph written out in torch's own operators, for evaluation mode.

A check becomes the vote over the stored copies and two comparisons. A guarded call becomes what the module's own
`forward` does with its parameters as inputs; where that asks its arguments what no stand-in can answer, and where
hooks or code other than torch's would be lost, `torch.func.functional_call` of the module.
"""

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.fx import Graph, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer

from fitact_fx.exchanging import exchange_of
from fitact_fx.guarded import GUARDED, Exchange
from fitact_fx.nodes import called_module, owning_module
from fitact_fx.parameter_limits import COPIES, Limits, limited

CHECK = "parameter_check"
"""In the meta of each node of a check that was written out: its limits. The last one is where(inside, parameter, 0)."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def plain_check(node: Node, limits: Limits) -> Node:
    """What this call of limits does, in operators before it; the copies stay buffers under their names."""
    owner, graph, target = owning_module(node), node.graph, str(node.target)
    last = node.prev
    copies = nn.Module()
    for name in COPIES:
        copies.register_buffer(name, getattr(limits, name))
    owner.add_submodule(target, copies.train(limits.training))
    with graph.inserting_before(node):
        tracer = GraphAppendingTracer(graph)
        stored: list[Any] = [Proxy(graph.get_attr(f"{target}.{name}"), tracer) for name in COPIES]
        parameter: Any = Proxy(node.all_input_nodes[0], tracer)
        result: Any = limited(parameter, stored, limits.shape, limits.copy0.dtype)
    while last.next is not node:
        last = last.next
        last.meta[CHECK] = limits
    return result.node  # type: ignore[no-any-return]


def plain_call(node: Node) -> Node:
    """What this guarded call of a module does, in operators before it."""
    module = called_module(node)
    kwargs = {name: value for name, value in node.kwargs.items() if name != GUARDED}
    guarded: Any = node.kwargs[GUARDED]
    Exchange.drop(module)
    if _is_torchs_own(module):
        before = set(node.graph.nodes)
        try:
            return _traced(node, module, guarded, kwargs)
        except Exception:  # noqa: BLE001  torch's code may raise anything when it meets a stand-in: it is called whole
            for each in reversed([each for each in node.graph.nodes if each not in before]):
                node.graph.erase_node(each)
    with node.graph.inserting_before(node):
        whole = node.graph.get_attr(str(node.target))
        return node.graph.call_function(functional_call, (whole, dict(guarded), tuple(node.args), kwargs))


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether tracing its forward loses nothing: no hooks, no parametrization, no code of the user's."""
    own = type(module).__module__.startswith("torch.nn.modules.")
    hooks = any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    return own and not hooks and "forward" not in vars(module)


def _traced(node: Node, module: nn.Module, guarded: dict[str, Node], kwargs: dict[str, Any]) -> Node:
    with node.graph.inserting_before(node):
        tracer = GraphAppendingTracer(node.graph)

        def stand_in(each: Node) -> Proxy:
            return Proxy(each, tracer)

        tensors: dict[str, Any] = {name: stand_in(each) for name, each in _buffers(node.graph, node, module)}
        tensors |= {name: stand_in(each) for name, each in guarded.items()}
        args, named = map_arg((node.args, kwargs), stand_in)  # type: ignore[arg-type]
        put_in, put_back = exchange_of(module, tensors)
        put_in()
        try:
            result: Any = (
                _batch_norm(module, *args, **named) if type(module) in _BATCH_NORMS else module(*args, **named)
            )
        finally:
            put_back()
    return result.node  # type: ignore[no-any-return]


def _buffers(graph: Graph, node: Node, module: nn.Module) -> Iterator[tuple[str, Node]]:
    for name, _ in module.named_buffers():
        yield name, graph.get_attr(f"{node.target}.{name}")


def _batch_norm(module: Any, input: Any) -> Any:  # noqa: A002  as torch calls it
    """Evaluation mode of batch normalisation, whose forward asks how many dimensions its input has."""
    own = module.running_mean is None and module.running_var is None
    statistics = module.running_mean, module.running_var
    return F.batch_norm(input, *statistics, module.weight, module.bias, own, module.momentum or 0.0, module.eps)
