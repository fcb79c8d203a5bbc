"""Where the channel is: which dimension of each node's value holds the channels.

Convolutions and most norms put it in dimension 1, linear layers and LayerNorm in the last. From
there it is carried through the graph as far as it can be known without running anything. Nothing
is guessed: behind an operator that may have moved the channel, the layout is None.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fitact_fx.nodes import argument, called_module, operator_name
from fitact_fx.sites import kind_of


@dataclass(frozen=True)
class Layout:
    """`dim`: the channel's dimension, negative when counted from the end; `rank` and `size` if known."""

    dim: int
    rank: int | None = None
    size: int | None = None

    def absolute(self, dim: int) -> int | None:
        """Any dimension of this value counted from the front, if that can be told."""
        if dim >= 0:
            return dim
        return None if self.rank is None else dim + self.rank


RANK_2 = Layout(1, 2)
"""On a rank-2 value, channel is dimension 1, wherever it came from."""

Layouts = dict[Node, Layout | None]
Rule = Callable[[Node, Layout], Layout | None]


def channel_layouts(graph_module: GraphModule) -> Layouts:
    """The layout of every node's value; None where it cannot be known."""
    layouts: Layouts = {}
    for node in graph_module.graph.nodes:
        layouts[node] = _origin(node) or _carried(node, layouts)
    return layouts


def _origin(node: Node) -> Layout | None:
    """What an operator with channels of its own says about its output."""
    if node.op == "call_function":
        return _FUNCTION_ORIGINS.get(node.target)
    if node.op != "call_module":
        return None
    module = called_module(node)
    for types, dim, rank, attribute in _MODULE_ORIGINS:
        if isinstance(module, types):
            size = getattr(module, attribute)
            return Layout(dim, rank, size[-1] if isinstance(size, tuple) else size)
    return None


# Type of module, the channel's dimension, the rank of the output, the attribute that says how many channels.
_MODULE_ORIGINS: tuple[tuple[tuple[type[nn.Module], ...], int, int | None, str], ...] = (
    ((nn.Conv1d, nn.ConvTranspose1d), 1, 3, "out_channels"),
    ((nn.Conv2d, nn.ConvTranspose2d), 1, 4, "out_channels"),
    ((nn.Conv3d, nn.ConvTranspose3d), 1, 5, "out_channels"),
    ((nn.InstanceNorm1d,), 1, 3, "num_features"),
    ((nn.BatchNorm2d, nn.InstanceNorm2d), 1, 4, "num_features"),
    ((nn.BatchNorm3d, nn.InstanceNorm3d), 1, 5, "num_features"),
    ((nn.BatchNorm1d,), 1, None, "num_features"),
    ((nn.GroupNorm,), 1, None, "num_channels"),
    ((nn.Linear, nn.Bilinear), -1, None, "out_features"),
    ((nn.Embedding,), -1, None, "embedding_dim"),
    ((nn.LayerNorm, nn.RMSNorm), -1, None, "normalized_shape"),
    ((nn.MultiheadAttention,), -1, None, "embed_dim"),
)
_FUNCTION_ORIGINS: dict[object, Layout] = {
    F.conv1d: Layout(1, 3),
    F.conv2d: Layout(1, 4),
    F.conv3d: Layout(1, 5),
    F.conv_transpose1d: Layout(1, 3),
    F.conv_transpose2d: Layout(1, 4),
    F.conv_transpose3d: Layout(1, 5),
    F.batch_norm: Layout(1),
    F.group_norm: Layout(1),
    F.instance_norm: Layout(1),
    F.linear: Layout(-1),
    F.layer_norm: Layout(-1),
    F.rms_norm: Layout(-1),
    F.embedding: Layout(-1),
}


def _carried(node: Node, layouts: Layouts) -> Layout | None:
    """The layout of the input, as this operator passes it on."""
    name = operator_name(node)
    if name in _ELEMENTWISE:
        return _agreed(node, layouts)
    source = next(iter(node.all_input_nodes), None)
    layout = layouts.get(source) if source is not None else None
    if name in _RESHAPES and len(_sizes(node)) == 2:
        return RANK_2
    if layout is None:
        return None
    if name in _KEEPING or kind_of(node) is not None:
        return layout
    rule = _RULES.get(name)
    return rule(node, layout) if rule else None


_ELEMENTWISE = frozenset("add sub mul div truediv iadd isub imul itruediv maximum minimum where cat pow".split())
_KEEPING = frozenset(
    "identity dropout dropout1d dropout2d dropout3d alphadropout alpha_dropout bounded contiguous "
    "clone detach to float half double bfloat16 type_as neg abs exp log sqrt rsqrt square softmax log_softmax roll "
    "flip chunk split channelshuffle localresponsenorm softmax2d".split()
)
_POOLING = frozenset(
    "pad interpolate upsample pixelshuffle pixelunshuffle zeropad1d zeropad2d zeropad3d reflectionpad1d "
    "reflectionpad2d replicationpad2d constantpad1d constantpad2d glu maxpool1d maxpool2d maxpool3d "
    "avgpool1d avgpool2d avgpool3d "
    "adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d adaptivemaxpool1d adaptivemaxpool2d adaptivemaxpool3d "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
)
_RESHAPES = frozenset(("view", "reshape"))


def _agreed(node: Node, layouts: Layouts) -> Layout | None:
    """Elementwise operators and cat: all inputs that matter have the channel in the same place."""
    known = [layouts.get(operand) for operand in node.all_input_nodes if not _is_constant(operand)]
    first = known[0] if known else None
    if first is None:
        return None
    for other in known[1:]:
        if other is None or (other.dim != first.dim and other.absolute(other.dim) != first.absolute(first.dim)):
            return None
        if other.dim != first.dim and first.rank is None:
            return None
    return replace(first, size=None) if operator_name(node) == "cat" else first


def _is_constant(operand: Node) -> bool:
    """A Parameter or buffer, which broadcasting lines up from the end and which moves nothing."""
    return operand.op == "get_attr"


def _resized(_: Node, layout: Layout) -> Layout:
    return replace(layout, size=None)


def _permute(node: Node, layout: Layout) -> Layout | None:
    dims = _integers(node)
    if not dims:
        return None
    dims = [dim % len(dims) for dim in dims]
    return replace(layout, dim=dims.index(layout.dim % len(dims)), rank=len(dims))


def _transpose(node: Node, layout: Layout) -> Layout | None:
    pair = _integers(node)
    if len(pair) != 2:
        return None
    if layout.rank is not None:
        pair = [dim % layout.rank for dim in pair]
        layout = replace(layout, dim=layout.dim % layout.rank)
    if any((dim < 0) != (layout.dim < 0) for dim in pair):
        return None
    swapped = {pair[0]: pair[1], pair[1]: pair[0]}
    return replace(layout, dim=swapped.get(layout.dim, layout.dim))


def _flatten(node: Node, layout: Layout) -> Layout | None:
    if node.op == "call_module":
        module = called_module(node)
        ends: tuple[object, object] = (module.start_dim, module.end_dim)
    else:
        ends = (argument(node, 1, "start_dim") or 0, argument(node, 2, "end_dim"))
    start, end = ends
    if end not in (None, -1) or not isinstance(start, int):
        return None
    if start == 1:
        return RANK_2
    return replace(layout, rank=start + 1) if 0 <= layout.dim < start else None


def _reshape(node: Node, layout: Layout) -> Layout | None:
    """A row-major reshape keeps the last dimension if its size stays, and dimension 1 if the batch's does too."""
    sizes = _sizes(node)
    if not sizes:
        return None
    if layout.dim == -1 or (layout.rank is not None and layout.dim == layout.rank - 1):
        return Layout(-1, len(sizes), layout.size) if _is_size(node, sizes[-1], -1, layout) else None
    if layout.dim == 1 and len(sizes) > 2 and _reads_size(node, sizes[0], 0) and _is_size(node, sizes[1], 1, layout):
        return Layout(1, len(sizes), layout.size)
    return None


def _is_size(node: Node, size: object, dim: int, layout: Layout) -> bool:
    return (layout.size is not None and size == layout.size) or _reads_size(node, size, dim)


def _reads_size(node: Node, size: object, dim: int) -> bool:
    """Whether `size` is this node's input's own x.size(dim) or x.shape[dim]."""
    if not isinstance(size, Node) or len(size.args) < 2 or size.args[1] != dim:
        return False
    source = size.args[0]
    if size.target is operator.getitem and isinstance(source, Node):
        source = source.args[0]
    return source is node.args[0]


def _squeeze(node: Node, layout: Layout) -> Layout | None:
    dims = _integers(node)
    dim = layout.absolute(dims[0]) if len(dims) == 1 else None
    channel = layout.absolute(layout.dim)
    if dim is None or channel is None or dim == channel:
        return None
    return replace(layout, dim=channel - (dim < channel), rank=None if layout.rank is None else layout.rank - 1)


def _unsqueeze(node: Node, layout: Layout) -> Layout | None:
    dims = _integers(node)
    if len(dims) != 1:
        return None
    rank = None if layout.rank is None else layout.rank + 1
    if layout.dim >= 0 and dims[0] >= 0:
        return replace(layout, dim=layout.dim + (dims[0] <= layout.dim), rank=rank)
    if layout.dim < 0 and dims[0] < 0:
        return replace(layout, dim=layout.dim - (dims[0] >= layout.dim), rank=rank)
    return replace(layout, rank=rank) if dims == [-1] else None


def _reduce(node: Node, layout: Layout) -> Layout | None:
    """mean, sum and their like over dimensions that are not the channel's."""
    given = argument(node, 1, "dim")
    dims = [given] if isinstance(given, int) else given
    channel = layout.absolute(layout.dim)
    if not isinstance(dims, tuple | list) or channel is None:
        return None
    reduced = [layout.absolute(dim) for dim in dims if isinstance(dim, int)]
    if None in reduced or channel in reduced or len(reduced) != len(dims):
        return None
    if argument(node, 2, "keepdim"):
        return replace(layout, dim=channel)
    before = sum(dim < channel for dim in reduced if dim is not None)
    rank = None if layout.rank is None else layout.rank - len(reduced)
    return replace(layout, dim=channel - before, rank=rank)


def _getitem(node: Node, layout: Layout) -> Layout | None:
    """Slices keep every dimension; an element of what chunk, split or attention gave is one of its tensors."""
    index, source = node.args[1], node.args[0]
    if isinstance(index, int):
        several = isinstance(source, Node) and operator_name(source) in (
            "chunk",
            "split",
            "multiheadattention",
        )
        return replace(layout, size=None) if several else None
    parts = index if isinstance(index, tuple) else (index,)
    return replace(layout, size=None) if all(isinstance(part, slice) for part in parts) else None


def _sizes(node: Node) -> list[object]:
    given = node.args[1:] or tuple(node.kwargs.values())
    return list(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else list(given)


def _integers(node: Node) -> list[int]:
    sizes = _sizes(node)
    return [size for size in sizes if isinstance(size, int)] if all(isinstance(s, int) for s in sizes) else []


_RULES: dict[str, Rule] = {
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "getitem": _getitem,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_POOLING, _resized),
}
