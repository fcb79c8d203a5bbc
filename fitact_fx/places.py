"""What a call is in the graph: an activation, a linear layer, a norm, a residual sum, or what the model returns."""

import operator
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fitact_fx.kinds import KINDS, RECURRENT
from fitact_fx.nodes import argument, called_module, called_name, is_attention, operator_name
from fitact_fx.spellings import kind_of
from fitact_fx.traced import TracedModule, nodes_in_call_order
from fitact_fx.unseen import UnseenCode

ACTIVATIONS, LINEAR, NORM, RESIDUAL, LOGITS = NAMES = ("activations", "linear", "norm", "residual", "logits")

_LINEAR_MODULES = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# Products with weights and, in attention, of values with each other: a faulty weight shows first in one of these.
_LINEAR_OPERATORS = frozenset(
    "linear bilinear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d "
    "matmul mm bmm addmm baddbmm einsum scaled_dot_product_attention".split()
)
_NORM_MODULES = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001  InstanceNorm is one as well, and has no other common class
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_NORM_OPERATORS = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm".split())
_ONE_OPERATOR = (*(kind.module for kind in (*KINDS, *RECURRENT)), *_LINEAR_MODULES, *_NORM_MODULES)

_SUMS = frozenset(("add", "iadd"))
# What gives no tensor of numbers, or several.
_NOT_LOGITS = frozenset("chunk split tensor_split unbind size getattr getitem sym_size".split())


def places(graph_module: GraphModule) -> dict[Node, frozenset[str]]:
    """Node -> the places it is, in call order; nodes that are none are left out."""
    from_input = _computed_from_inputs(graph_module)
    returned = set(_returned(graph_module))
    found = {}
    for _, node in nodes_in_call_order(graph_module):
        where = set(_own_places(node, from_input))
        if node in returned and (where or _may_be_logits(node)):
            where.add(LOGITS)
        if where:
            found[node] = frozenset(where)
    return found


def is_one_operator(module: nn.Module) -> bool:
    """Whether a module does one thing, so that what it gives is called as it is; a subclass may do more."""
    own: Any = next(
        cls for cls in type(module).__mro__ if cls in _ONE_OPERATOR or cls.__module__.startswith("torch.nn.")
    )
    return isinstance(module, _ONE_OPERATOR) and type(module).forward is own.forward


def _own_places(node: Node, from_input: set[Node]) -> Iterator[str]:
    if kind_of(node) is not None:
        yield ACTIVATIONS
    if node.op == "call_module":
        module = called_module(node)
        if isinstance(module, _LINEAR_MODULES):
            yield LINEAR
        if isinstance(module, _NORM_MODULES):
            yield NORM
    elif node.op in ("call_function", "call_method"):
        name = operator_name(node)
        if name in _LINEAR_OPERATORS or _is_attended(node):
            yield LINEAR
        if name in _NORM_OPERATORS:
            yield NORM
        summands = argument(node, 0, "input"), argument(node, 1, "other")
        if name in _SUMS and all(each in from_input for each in summands):
            yield RESIDUAL


def _is_attended(node: Node) -> bool:
    """The first of what nn.MultiheadAttention gives: the attended values, behind its output projection."""
    return node.target is operator.getitem and is_attention(node.args[0]) and bool(node.args[1] == 0)


def _computed_from_inputs(graph_module: GraphModule) -> set[Node]:
    """Values that depend on an argument of their graph. Sizes do not count, nor Parameters by themselves."""
    computed: set[Node] = set()
    for _, node in nodes_in_call_order(graph_module):
        takes = node.op == "placeholder" or any(each in computed for each in node.all_input_nodes)
        if takes and called_name(node) not in ("size", "shape", "sym_size", "dim", "getattr"):
            computed.add(node)
    return computed


def _returned(graph_module: GraphModule) -> Iterator[Node]:
    """The nodes whose values the model returns, through containers and dataclasses."""
    pending: list[Any] = [next(reversed(graph_module.graph.nodes)).args]
    while pending:
        value = pending.pop()
        if isinstance(value, Node):
            if isinstance(value.target, type):  # a dataclass or another container is made
                pending.extend((*value.args, *value.kwargs.values()))
            elif called_name(value) == "copy_":  # a value that is written back into memory that others read
                pending.append(value.args[1])
            elif called_name(value) == "type_as":  # one that was computed in place keeps its type
                pending.append(value.args[0])
            else:
                yield value
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, tuple | list):
            pending.extend(value)


def _may_be_logits(node: Node) -> bool:
    """Whether a value that no other place names may be one tensor of numbers."""
    if node.op == "call_module":
        module = called_module(node)
        several = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention, UnseenCode)
        return not isinstance(module, several) and not any(isinstance(each, TracedModule) for each in module.modules())
    return node.op in ("call_function", "call_method") and operator_name(node) not in _NOT_LOGITS
