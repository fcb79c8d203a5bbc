"""How operators move the dimension that holds the channels: what is known without running anything."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import Node

from fitact_fx.nodes import argument, called_module, is_attention, operator_name


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


_RANK_2 = Layout(1, 2)
"""On a rank-2 value, channel is dimension 1, wherever it came from."""

Move = Callable[[Node, Layout], Layout | None]


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


def _mT(node: Node, layout: Layout) -> Layout | None:  # noqa: N802  as in torch
    """`x.mT` swaps the last two dimensions; of other attributes nothing is known."""
    if argument(node, 1, "name") != "mT":
        return None
    if layout.rank is None and layout.dim >= 0:
        return None
    dim = layout.dim if layout.rank is None else layout.dim % layout.rank - layout.rank
    return replace(layout, dim={-1: -2, -2: -1}.get(dim, dim))


def _movedim(node: Node, layout: Layout) -> Layout | None:
    rank, ends = layout.rank, [argument(node, 1, "source"), argument(node, 2, "destination")]
    if rank is None:
        return None
    moved: list[list[int]] = []
    for end in ends:
        dims = end if isinstance(end, tuple | list) else (end,)
        moved.append([dim % rank for dim in dims if isinstance(dim, int)])
        if len(moved[-1]) != len(dims):
            return None
    order = [dim for dim in range(rank) if dim not in moved[0]]
    for destination, source in sorted(zip(moved[1], moved[0], strict=True)):
        order.insert(destination, source)
    return replace(layout, dim=order.index(layout.dim % rank))


def _flatten(node: Node, layout: Layout) -> Layout | None:
    if node.op == "call_module":
        module = called_module(node)
        ends: tuple[object, object] = (module.start_dim, module.end_dim)
    else:
        ends = (argument(node, 1, "start_dim") or 0, argument(node, 2, "end_dim"))
    start, end = ends
    if end not in (None, -1) or not isinstance(start, int):
        return None
    if start == 1 and layout.absolute(layout.dim) != 0:
        return _RANK_2
    return replace(layout, rank=start + 1) if 0 <= layout.dim < start else None


def _reshape(node: Node, layout: Layout) -> Layout | None:
    """A reshape keeps the order of the elements.

    So the last dimension stays if its size does, and dimension 1 if the batch's size does too.
    """
    sizes = _sizes(node)
    if not sizes:
        return None
    last = layout.dim == -1 or (layout.rank is not None and layout.dim == layout.rank - 1)
    if last and _is_size(node, sizes[-1], -1, layout):
        return Layout(-1, len(sizes), layout.size)
    if not _reads_size(node, sizes[0], 0):
        return None
    if len(sizes) == 2 and layout.absolute(layout.dim) != 0:
        return _RANK_2
    return Layout(1, len(sizes), layout.size) if layout.dim == 1 and _is_size(node, sizes[1], 1, layout) else None


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
    if dim > channel:
        return Layout(channel, None, layout.size)
    # A dimension that is not 1 stays, so only the place counted from the end is sure.
    return None if layout.rank is None else Layout(channel - layout.rank, None, layout.size)


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
    """An element of what chunk, split or attention gave is one of its tensors."""
    index, source = node.args[1], node.args[0]
    if isinstance(index, int):
        of = operator_name(source) if isinstance(source, Node) else ""
        # What attention gives beside its values are weights between places.
        several = of in ("chunk", "split") or (is_attention(source) and index == 0)
        return replace(layout, size=None) if several else None
    parts = index if isinstance(index, tuple) else (index,)
    if all(isinstance(part, slice) for part in parts):
        return replace(layout, size=None)
    return _indexed(parts, layout)


def _indexed(parts: tuple[object, ...], layout: Layout) -> Layout | None:
    """A slice keeps a dimension, an integer takes it away and None adds one."""
    if not all(part is None or part is ... or type(part) in (int, slice) for part in parts):
        return None
    consumed = sum(part is not None and part is not ... for part in parts)
    if ... in parts:
        if layout.rank is None or parts.count(...) > 1:
            return None
        at = parts.index(...)
        parts = (*parts[:at], *[slice(None)] * (layout.rank - consumed), *parts[at + 1 :])
        consumed = layout.rank
    channel = layout.absolute(layout.dim)
    if channel is None:
        return None
    # What stands behind the last part is kept as it is.
    parts += (slice(None),) * (channel + 1 - consumed)
    kept = [at for at, part in enumerate(parts) if part is not None]
    if type(parts[kept[channel]]) is int:
        return None
    before = parts[: kept[channel]]
    grown = sum((part is None) - (type(part) is int) for part in parts)
    dim = len(before) - sum(type(part) is int for part in before)
    return Layout(dim, None if layout.rank is None else layout.rank + grown)


def _sizes(node: Node) -> list[object]:
    given = node.args[1:] or tuple(node.kwargs.values())
    return list(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else list(given)


def _integers(node: Node) -> list[int]:
    sizes = _sizes(node)
    return [size for size in sizes if isinstance(size, int)] if all(isinstance(s, int) for s in sizes) else []


_RESIZING = frozenset(
    "constant_pad_nd "
    "pad interpolate upsample pixelshuffle pixelunshuffle zeropad1d zeropad2d zeropad3d reflectionpad1d "
    "reflectionpad2d replicationpad2d constantpad1d constantpad2d glu maxpool1d maxpool2d maxpool3d "
    "avgpool1d avgpool2d avgpool3d "
    "adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d adaptivemaxpool1d adaptivemaxpool2d adaptivemaxpool3d "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
)


def _sliced(_: Node, layout: Layout) -> Layout:
    return replace(layout, size=None)


def _selected(node: Node, layout: Layout) -> Layout | None:
    """ATen's x[..., i, ...]: one dimension goes."""
    dim = argument(node, 1, "dim")
    taken = layout.absolute(dim) if isinstance(dim, int) else None
    channel = layout.absolute(layout.dim)
    if taken is None or channel is None or taken == channel:
        return None
    rank = None if layout.rank is None else layout.rank - 1
    return replace(layout, dim=channel - (taken < channel), rank=rank)


def _expanded(node: Node, layout: Layout) -> Layout | None:
    """New dimensions come in front."""
    sizes = _sizes(node)
    if layout.rank is None or len(sizes) < layout.rank:
        return None
    return Layout(layout.dim if layout.dim < 0 else layout.dim - layout.rank, len(sizes), None)


MOVES: dict[str, Move] = {
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "getattr": _mT,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "getitem": _getitem,
    "attention": _getitem,
    "view": _reshape,
    "reshape": _reshape,
    "unsafe_view": _reshape,
    "slice": _sliced,
    "select": _selected,
    "expand": _expanded,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(_RESIZING, _resized),
}
"""Operator name -> where the channel of its input is in its result, or None if that is not known."""
