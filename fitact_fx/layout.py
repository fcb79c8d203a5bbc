"""Where the channel is: which dimension of each node's value holds the channels.

Convolutions and most norms put it in dimension 1, linear layers and LayerNorm in the last. From
there it is carried through the graph as far as it can be known without running anything. Nothing
is guessed: behind an operator that may have moved the channel, the layout is None.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fitact_fx.dimensions import MOVES, Layout
from fitact_fx.nodes import argument, called_module, called_name, is_stored, operator_name, owning_module, stored_at
from fitact_fx.recurrence import recurrent_call
from fitact_fx.spellings import kind_of
from fitact_fx.traced import nodes_in_call_order

Layouts = dict[Node, Layout | None]


def channel_layouts(graph_module: GraphModule) -> Layouts:
    """The layout of every node's value; None where it cannot be known."""
    layouts: Layouts = {}
    guesses: Layouts = {}  # for the value alone: what is computed from it does not build on them
    for _, node in nodes_in_call_order(graph_module):
        carried = _carried(node, layouts)
        if operator_name(node) in _LAST_NORMS:
            layout = _behind_norm(node, carried)
        else:
            layout = _with_rank(_origin(node), node, layouts) or carried
        layouts[node] = _with_shape(layout, node.meta.get("shape"))
        if layouts[node] is None:
            guesses[node] = _of_attention(node)
    return layouts | guesses


def _with_shape(layout: Layout | None, shape: tuple[int | None, ...] | None) -> Layout | None:
    """An exported graph knows the shapes of its values."""
    if layout is None or shape is None or not -len(shape) <= layout.dim < len(shape):
        return layout
    dim = layout.dim % len(shape)
    return Layout(dim - len(shape) if layout.dim < 0 else dim, len(shape), shape[dim])


def _origin(node: Node) -> Layout | None:
    """What an operator with channels of its own says about its output."""
    if recurrent_call(node) is not None and kind_of(node) is not None:
        return Layout(-1)
    if node.op == "call_function":
        return _FUNCTION_ORIGINS.get(operator_name(node))
    if node.op != "call_module":
        return None
    module = called_module(node)
    for types, dim, rank, attribute in _MODULE_ORIGINS:
        if isinstance(module, types):
            return Layout(dim, rank, getattr(module, attribute))
    return None


def _with_rank(origin: Layout | None, node: Node, layouts: Layouts) -> Layout | None:
    """Most of them give as many dimensions as they get."""
    before = layouts.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    if origin is None or before is None or operator_name(node) not in _RANK_STAYS:
        return origin
    return replace(origin, rank=before.rank)


# Type of module, the channel's dimension, the rank of the output, the attribute that says how many channels.
_MODULE_ORIGINS: tuple[tuple[tuple[type[nn.Module], ...], int, int | None, str], ...] = (
    ((nn.Conv1d, nn.ConvTranspose1d), 1, 3, "out_channels"),
    ((nn.Conv2d, nn.ConvTranspose2d), 1, 4, "out_channels"),
    ((nn.Conv3d, nn.ConvTranspose3d), 1, 5, "out_channels"),
    ((nn.InstanceNorm1d,), 1, 3, "num_features"),
    ((nn.BatchNorm2d, nn.InstanceNorm2d), 1, 4, "num_features"),
    ((nn.BatchNorm3d, nn.InstanceNorm3d), 1, 5, "num_features"),
    ((nn.BatchNorm1d, nn.SyncBatchNorm), 1, None, "num_features"),
    ((nn.GroupNorm,), 1, None, "num_channels"),
    ((nn.Linear, nn.Bilinear), -1, None, "out_features"),
    ((nn.Embedding,), -1, None, "embedding_dim"),
    ((nn.MultiheadAttention,), -1, None, "embed_dim"),
)
_FUNCTION_ORIGINS: dict[str, Layout] = {
    "conv1d": Layout(1, 3),
    "conv2d": Layout(1, 4),
    "conv3d": Layout(1, 5),
    "conv_transpose1d": Layout(1, 3),
    "conv_transpose2d": Layout(1, 4),
    "conv_transpose3d": Layout(1, 5),
    "batch_norm": Layout(1),
    "group_norm": Layout(1),
    "instance_norm": Layout(1),
    "linear": Layout(-1),
    "embedding": Layout(-1),
}

_RANK_STAYS = frozenset("linear batchnorm1d syncbatchnorm groupnorm batch_norm group_norm instance_norm".split())
_LAST_NORMS = frozenset(("layernorm", "rmsnorm", "layer_norm", "rms_norm"))


def _behind_norm(node: Node, carried: Layout | None) -> Layout | None:
    """A norm over the last dimension says that the channel is there, unless it is known to be elsewhere.

    A norm over several (C, H, W) says nothing about which of them it is.
    """
    shape = called_module(node).normalized_shape if node.op == "call_module" else argument(node, 1, "normalized_shape")
    if not isinstance(shape, tuple | list) or len(shape) != 1:
        return carried
    size = shape[0] if isinstance(shape[0], int) else None
    if carried is None:
        return Layout(-1, None, size)
    return Layout(-1, carried.rank, size) if carried.dim in (-1, (carried.rank or 0) - 1) else None


def _carried(node: Node, layouts: Layouts) -> Layout | None:
    """The layout of the input, as this operator passes it on."""
    name = operator_name(node)
    if name == "glu":
        return _resized(node, layouts)
    if name in _PRODUCTS and any(is_stored(each) for each in node.all_input_nodes):
        return Layout(-1)  # a linear layer by another name
    if name in _ELEMENTWISE:
        return _agreed(node, layouts)
    source = next(iter(node.all_input_nodes), None)
    layout = layouts.get(source) if source is not None else None
    if layout is None:
        return None
    if name in _KEEPING or name in _LAST_NORMS or kind_of(node) is not None:
        return layout
    move = MOVES.get(name)
    return move(node, layout) if move else None


_ELEMENTWISE = frozenset("add sub mul div truediv iadd isub imul itruediv maximum minimum where cat pow".split())
_KEEPING = frozenset(
    "identity dropout dropout1d dropout2d dropout3d alphadropout alpha_dropout bounded contiguous "
    "clone copy detach to zeros_like ones_like float half double bfloat16 type_as neg abs exp log sqrt rsqrt square "
    "softmax log_softmax roll flip chunk split channelshuffle localresponsenorm softmax2d".split()
)


_PRODUCTS = frozenset("matmul bmm scaled_dot_product_attention".split())


def _of_attention(node: Node) -> Layout | None:
    """Scores, weights and values of attention, (N, heads, T, S), are told apart by their heads.

    Another rank is refused when it is seen.
    """
    name, shape = operator_name(node), node.meta.get("shape")
    is_one = name in _PRODUCTS or (name in ("softmax", "_softmax") and _is_over_last(node))
    return Layout(1, 4) if is_one and (shape is None or len(shape) == 4) else None


def _resized(node: Node, layouts: Layouts) -> Layout | None:
    layout = _of_input(node, layouts)
    return None if layout is None else replace(layout, size=None)


def _of_input(node: Node, layouts: Layouts) -> Layout | None:
    return layouts.get(node.all_input_nodes[0]) if node.all_input_nodes else None


def _is_over_last(node: Node) -> bool:
    dim = called_module(node).dim if node.op == "call_module" else argument(node, 1, "dim")
    return dim in (-1, 3)


def _agreed(node: Node, layouts: Layouts) -> Layout | None:
    """Elementwise operators and cat: all inputs that matter have the channel in the same place."""
    operands = [operand for operand in node.all_input_nodes if not is_stored(operand)]
    from_end = any((layout := layouts.get(operand)) is not None and layout.dim < 0 for operand in operands)
    if from_end:  # broadcasting lines up from the end, so an input of the network cannot move it
        operands = [each for each in operands if not _is_input(each) or layouts.get(each) is not None]
    known = [layouts.get(operand) for operand in operands]
    first = known[0] if known else None
    constants = [_rank(operand) for operand in node.all_input_nodes if is_stored(operand)]
    if first is None or (first.dim >= 0 and any(rank > (first.rank or first.dim + 1) for rank in constants)):
        return None  # broadcasting may put dimensions in front
    for other in known[1:]:
        if other is None or not _in_same_place(first, other):
            return None
    known_rank = first.rank is not None and all(rank <= first.rank for rank in constants)
    ranks, sizes = ({getattr(layout, name) for layout in known} for name in ("rank", "size"))
    # A size of 1 may have been broadcast to another.
    size = first.size if len(sizes) == 1 and first.size != 1 and operator_name(node) != "cat" else None
    return Layout(first.dim, first.rank if known_rank and len(ranks) == 1 else None, size)


def _is_input(node: Node) -> bool:
    """An argument of the network, as it is or laid out densely."""
    source = node.args[0] if called_name(node) == "contiguous" else node
    return isinstance(source, Node) and source.op == "placeholder"


def _in_same_place(one: Layout, other: Layout) -> bool:
    if one.dim < 0 and one.dim == other.dim:
        return True  # broadcasting lines up from the end
    places = [one.absolute(one.dim), other.absolute(other.dim)]
    return one.rank == other.rank and None not in places and places[0] == places[1]


def _rank(constant: Node) -> float:
    """How many dimensions a Parameter or buffer has."""
    owner, _, name = stored_at(constant).rpartition(".")
    value = getattr(owning_module(constant).get_submodule(owner), name)
    return value.ndim if isinstance(value, Tensor) else torch.inf


__all__ = ["Layout", "channel_layouts"]
