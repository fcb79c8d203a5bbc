"""Faults into the memory of a model and out again, at a cost that grows with the faults, not the model.

Only the hit elements are read, encoded, corrupted, decoded and written. Their raw bits are kept, not
their values, so that what is put back is what was there, NaN payloads included.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fitact_fx.errors import FaultError
from fitact_fx.faults.formats import Format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.tensor_faults import TensorFaults

_RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per element -> raw words

# Tensors in use, by id: variants of a model share parameters, so to mark the model would not be enough.
_claimed: set[int] = set()
_claiming = Lock()


@contextmanager
def applied(memory: Memory, stored: Format, tensors: Sequence[TensorFaults]) -> Iterator[None]:
    """Inside, `memory` holds the faults; behind, however it is left, exactly what it held before.

    FaultError, with nothing changed, if the faults do not fit or some are already applied there.
    """
    hits = [(memory.find(one.name, one.shape, stored), one) for one in tensors]
    with _claim(memory.tensors), ExitStack() as undo:
        for tensor, faults in hits:
            if len(faults):
                _corrupt(tensor, stored, faults, undo)
        yield


@contextmanager
def _claim(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    mine = {id(tensor) for tensor in tensors.values()}
    with _claiming:
        taken = next((name for name, tensor in tensors.items() if id(tensor) in _claimed), None)
        if taken is not None:
            raise FaultError(
                f"faults are already applied to this model (tensor {taken!r}); "
                "leave that `with faults.applied(...)` block before entering another"
            )
        _claimed.update(mine)
    try:
        yield
    finally:
        _claimed.difference_update(mine)


@torch.no_grad()
def _corrupt(tensor: Tensor, stored: Format, faults: TensorFaults, undo: ExitStack) -> None:
    elements, masks = faults.masks
    memory = _raw_words(tensor)
    places = torch.from_numpy(_offsets(tensor, elements)).to(memory.device)
    before = memory.index_select(0, places)
    # On the CPU whatever the model's device: the faulty words are then the same everywhere.
    values = before.cpu().view(tensor.dtype)
    words = stored.encode(values)
    faulty = stored.decode(words ^ torch.from_numpy(masks).to(words.dtype)).to(tensor.dtype)
    undo.callback(_restore, tensor, faults.name, memory, places, before)  # first: an interrupt may come next
    _write(memory, places, faulty.view(memory.dtype).to(memory.device))


def _restore(tensor: Tensor, name: str, memory: Tensor, places: Tensor, before: Tensor) -> None:
    _write(memory, places, before)
    if tensor.data_ptr() != memory.data_ptr():
        raise FaultError(
            f"tensor {name!r} was moved or cast while faults were applied and took them along; "
            "load the model's weights again, and move it outside the block"
        )


@torch.no_grad()
def _write(memory: Tensor, places: Tensor, raw: Tensor) -> None:
    memory.index_copy_(0, places, raw)


def _raw_words(tensor: Tensor) -> Tensor:
    """A view of the storage behind `tensor`, flat and as integers. Autograd sees writes to it as in-place."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().view(_RAW[tensor.element_size()]).as_strided((span,), (1,))


def _offsets(tensor: Tensor, elements: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the elements, counted row by row, lie in `_raw_words(tensor)`."""
    if tensor.is_contiguous():
        return elements.copy()  # torch wants to own what it could write to
    places = np.unravel_index(elements, tuple(tensor.shape))
    strided = (place * stride for place, stride in zip(places, tensor.stride(), strict=True))
    return np.asarray(sum(strided), np.int64)
