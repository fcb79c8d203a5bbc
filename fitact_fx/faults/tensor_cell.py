"""Faults into one tensor and out again, at a cost that grows with the faults and not with the tensor.

Only the hit elements are read, encoded, corrupted, decoded and written. Their raw bits are kept, not
their values, so that what is put back is what was there, NaN payloads included.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from fitact_fx.errors import FaultError
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.tensor_faults import Elements, Masks, TensorFaults, Words
from fitact_fx.injected import RAW, written_back

COMPILED = "_orig_mod"  # under which torch.compile keeps the module that it wraps

Stamp = tuple[int, int]


Place = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class TensorCell:
    """One tensor of a model, as it was when the model's memory was looked through.

    `name` is the first of its `names` in alphabetical order: the order of registration differs between a
    model and its hardened variant. `kind` is one of `targets.KINDS`; `place` is equal for tensors that are tied, as
    one object or over the same storage, in whichever model.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    tensor: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Place
    _scales: dict[Format, tuple[Stamp, Tensor]] = field(default_factory=dict)

    def misfit(self, stored: Format) -> str | None:
        """Why this tensor cannot be thought of as stored in that format; None if it can."""
        if any(stride == 0 and size > 1 for size, stride in zip(self.shape, self.tensor.stride(), strict=True)):
            return "is expanded: several of its elements are one number in memory; give it memory with .contiguous()"
        if self.dtype in stored.dtypes:
            return None
        found, *fitting = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, *stored.dtypes))
        return (
            f"is {found}, which cannot hold {stored.name} numbers; "
            f"choose another format, or convert the model to {' or '.join(fitting)}"
        )

    def is_current(self, model: nn.Module, name: str) -> bool:
        """Whether `model` still has this tensor under that name, of the same shape and type."""
        owner: nn.Module | None = model
        *path, last = name.split(".")
        for step in path:
            owner = None if owner is None else owner._modules.get(step)
            owner = owner if owner is None else owner._modules.get(COMPILED, owner)
        if owner is None:
            return False
        found = owner._parameters.get(last, owner._buffers.get(last))
        return found is not None and place_of(found) == self.place

    def forget(self) -> None:
        """Work out scales anew: the tensor may have been written to in a way that leaves no trace (`.data`)."""
        self._scales.clear()

    def hit(self, stored: Format, effect: Effect, faults: TensorFaults, undo: list[Callable[[], None]]) -> None:
        """Put the faults in; what is added to `undo` puts back what was there."""
        masks = faults.masks(effect, stored.bits)
        memory = _raw_words(self.tensor)
        places = masks.elements if self.tensor.is_contiguous() else _offsets(self.tensor, masks.elements)
        before = memory[places]
        faulty = masks.applied(before) if stored.is_own(self.dtype) else self._corrupted(before, masks, stored)
        # First, as an interrupt may come next.
        undo.append(
            partial(self._put_back, stored, memory, places, before, self.tensor.data_ptr(), _stamp(self.tensor))
        )
        self._write(memory, places, faulty)

    def _corrupted(self, before: Words, masks: Masks, stored: Format) -> Words:
        scale = self._scale(stored, masks.elements)
        words = stored.encode(torch.from_numpy(before).view(self.dtype), scale)
        broken = torch.from_numpy(masks.applied(words.numpy()))
        return written_back(stored.decode(broken, scale), self.dtype).view(RAW[self.dtype.itemsize]).numpy()

    def _write(self, memory: "Words | OnDevice", places: Elements, words: Words) -> None:
        memory[places] = words
        if not self.tensor.is_inference():
            increment_version(self.tensor)  # autograd and the stamp below are to see it

    def _put_back(
        self,
        stored: Format,
        memory: "Words | OnDevice",
        places: Elements,
        before: Words,
        pointer: int,
        stamp: Stamp | None,
    ) -> None:
        self._write(memory, places, before)
        if self.tensor.data_ptr() != pointer:
            raise FaultError(
                f"tensor {self.name!r} was moved or cast while faults were applied and took them along; "
                "load the model's weights again, and move it outside the block"
            )
        if self._scales and stored in self._scales and stamp is not None:
            now = (stamp[0], stamp[1] + 2)
            if _stamp(self.tensor) == now:  # nobody wrote to it but us, there and back: its scale is what it was
                self._scales[stored] = (now, self._scales[stored][1])

    def _scale(self, stored: Format, elements: Elements) -> Tensor | None:
        """The format's scale at these elements: one number, or (n,); worked out once, until the tensor changes."""
        stamp = _stamp(self.tensor)
        known = self._scales.get(stored) if self._scales else None
        if known is not None and known[0] == stamp:
            whole = known[1]
        else:
            computed = stored.scale(self.tensor.detach())
            if computed is None:
                return None
            whole = computed.cpu()
            if stamp is not None:
                self._scales[stored] = (stamp, whole)
        if whole.numel() == 1:
            return whole.reshape(())
        return torch.from_numpy(whole.expand(self.shape).numpy()[np.unravel_index(elements, self.shape)])


@dataclass(frozen=True)
class OnDevice:
    """A flat tensor on another device than the CPU, read and written like an array of its elements.

    Only these elements travel: what is done to them is done on the CPU, so it comes out the same everywhere.
    """

    raw: Tensor

    def __getitem__(self, places: Elements) -> Words:
        return self.raw.index_select(0, self._there(places)).cpu().numpy()

    def __setitem__(self, places: Elements, words: Words) -> None:
        self.raw.index_copy_(0, self._there(places), torch.from_numpy(words).to(self.raw.device))

    def _there(self, places: Elements) -> Tensor:
        return torch.from_numpy(places.copy()).to(self.raw.device)  # a copy: torch wants to own what it could write to


def place_of(tensor: Tensor) -> Place:
    """Equal for tensors that are the same numbers in memory; of a tensor without memory, the object itself."""
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _stamp(tensor: Tensor) -> Stamp | None:
    """Changes whenever the tensor is written to; None where torch keeps no count."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)


def _raw_words(tensor: Tensor) -> "Words | OnDevice":
    """The storage behind `tensor`, flat and as integers; not a copy."""
    raw = tensor.detach().view(RAW[tensor.element_size()])
    if raw.is_contiguous():
        flat = raw.view(-1)
    else:
        span = 1 + sum((size - 1) * stride for size, stride in zip(raw.shape, raw.stride(), strict=True))
        flat = raw.as_strided((span,), (1,))
    return flat.numpy() if flat.is_cpu else OnDevice(flat)


def _offsets(tensor: Tensor, elements: Elements) -> Elements:
    """Where the elements, counted row by row, lie in `_raw_words(tensor)`."""
    places = np.unravel_index(elements, tuple(tensor.shape))
    strided = (place * stride for place, stride in zip(places, tensor.stride(), strict=True))
    return np.asarray(sum(strided), np.int64)
