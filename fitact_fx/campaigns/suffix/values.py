"""What the values of a graph are made of: tensors and the memory they lie in, and whether two are the same bits."""

import struct
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from fitact_fx.injected import RAW

_CONSTANTS = bool | int | float | complex | str | torch.dtype | torch.device | None


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a value."""
    return [value] if isinstance(value, Tensor) else [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def storages_of(value: Any) -> Iterator[tuple[int, int]]:
    """Address and bytes of the memory that a value lies in."""
    for tensor in tensors_of(value):
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                yield storage.data_ptr(), storage.nbytes()


def is_plain(value: Any) -> bool:
    """Whether a value is made of dense tensors and constants, whose memory and bits can be told."""
    leaves = [value] if isinstance(value, Tensor) else tree_leaves(value)
    return all(
        each.layout == torch.strided
        and not each.is_quantized
        and type(each) in (Tensor, nn.Parameter)
        and each.itemsize in RAW
        if isinstance(each, Tensor)
        else isinstance(each, _CONSTANTS)
        for each in leaves
    )


def same_bits(one: Any, other: Any, *, unknown: bool = False) -> bool:
    """Whether two values are the same, bit for bit; `unknown` is what to think of objects that cannot be compared."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _same_tensor(one, other)
    (ours, form), (theirs, other_form) = tree_flatten(one), tree_flatten(other)
    if form != other_form:
        return False
    return all(_same_leaf(mine, its, unknown) for mine, its in zip(ours, theirs, strict=True))


def _same_leaf(one: Any, other: Any, unknown: bool) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return _same_tensor(one, other)
    if isinstance(one, float | complex):
        return _words(one) == _words(other)
    return bool(one == other) if isinstance(one, _CONSTANTS) else unknown


def _words(number: complex) -> bytes:
    """The bits of a number, which tell 0.0 from -0.0, and one NaN from another."""
    return struct.pack("<2d", number.real, number.imag)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    if one.layout != torch.strided or one.is_quantized:
        return torch.equal(one, other)
    if one.stride() != other.stride():  # on which later rounding depends
        return False
    if one.is_complex():
        one, other = (torch.view_as_real(each.resolve_conj()) for each in (one, other))
    raw = RAW[one.itemsize]
    return torch.equal(one.resolve_neg().view(raw), other.resolve_neg().view(raw))
