"""The storage behind a tensor: where it lies, and its words by place."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fitact_fx.faults.tensor_faults import Elements, Words
from fitact_fx.injected import RAW

# Where a tensor's numbers lie and how they are read; equal for tensors that are tied, as one object or by storage.
Extent = tuple[object, ...]


def extent_of(tensor: Tensor) -> Extent:
    """Of a tensor without memory, the object itself."""
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def span_of(tensor: Tensor) -> int:
    """How many words lie between its first and its last element, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


_NUMPY = {torch.float16: np.int16, torch.float32: np.int32, torch.float64: np.int64}


def raw_words(tensor: Tensor) -> "Words | OnDevice":
    """The storage behind `tensor`, flat and as integers; not a copy."""
    if tensor.dtype in _NUMPY and tensor.is_cpu and tensor.is_contiguous():
        words: Words = (
            tensor.detach().numpy().view(_NUMPY[tensor.dtype]).reshape(-1)
        )  # a third of what torch's views cost
        return words
    raw = tensor.detach().view(RAW[tensor.element_size()])
    flat = raw.view(-1) if raw.is_contiguous() else raw.as_strided((span_of(raw),), (1,))
    return flat.numpy() if flat.is_cpu else OnDevice(flat)


def offsets(tensor: Tensor, elements: Elements) -> Elements:
    """Where the elements, counted row by row, lie in `raw_words(tensor)`."""
    if tensor.is_contiguous():
        return elements
    places = np.unravel_index(elements, tuple(tensor.shape))
    strided = (place * stride for place, stride in zip(places, tensor.stride(), strict=True))
    return np.asarray(sum(strided), np.int64)


class OnDevice:
    """A flat tensor on another device than the CPU, read and written like an array of its elements.

    Only these elements travel: what is done to them is done on the CPU, so it comes out the same everywhere.
    """

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    def __getitem__(self, places: Elements) -> Words:
        return self.raw.index_select(0, self._there(places)).cpu().numpy()

    def __setitem__(self, places: Elements, words: NDArray[np.generic]) -> None:
        self.raw.index_copy_(0, self._there(places), torch.from_numpy(words).to(self.raw.device))

    def _there(self, places: Elements) -> Tensor:
        return torch.from_numpy(places.copy()).to(self.raw.device)  # a copy: torch wants to own what it could write to
