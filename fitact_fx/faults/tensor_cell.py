"""Faults into one tensor and out again, at a cost that grows with the faults and not with the tensor.

Only the hit elements are read, encoded, corrupted, decoded and written. Their raw bits are kept, not
their values, so that what is put back is what was there, NaN payloads included.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fitact_fx.errors import FaultError
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.tensor_faults import Masks, TensorFaults
from fitact_fx.injected import RAW, written_back

Stamp = tuple[int, int]


@dataclass(frozen=True, eq=False)
class TensorCell:
    """One tensor of a model, as it was when the model's memory was looked through.

    `name` is the first of its `names` in alphabetical order: the order of registration differs between a
    model and its hardened variant. `kind` is one of `targets.KINDS`.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    tensor: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    _scales: dict[Format, tuple[Stamp, Tensor]] = field(default_factory=dict)

    @property
    def identity(self) -> int:
        """Equal for cells over the same object, in whichever model."""
        return id(self.tensor)

    def misfit(self, stored: Format) -> str | None:
        """Why this tensor cannot be thought of as stored in that format; None if it can."""
        if self.dtype in stored.dtypes:
            return None
        found, *fitting = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, *stored.dtypes))
        return (
            f"is {found}, which cannot hold {stored.name} numbers; "
            f"choose another format, or convert the model to {' or '.join(fitting)}"
        )

    def is_current(self, model: nn.Module) -> bool:
        """Whether `model` still has this very tensor under this name, of the same shape and type."""
        owner: nn.Module | None = model
        *path, last = self.name.split(".")
        for step in path:
            owner = None if owner is None else owner._modules.get(step)
        if owner is None or self.tensor is not owner._parameters.get(last, owner._buffers.get(last)):
            return False
        return self.tensor.dtype == self.dtype and self.tensor.shape == self.shape

    def hit(self, stored: Format, effect: Effect, faults: TensorFaults, undo: list[Callable[[], None]]) -> None:
        """Put the faults in; what is added to `undo` puts back what was there. For use without gradients."""
        memory = _raw_words(self.tensor)
        masks = faults.masks(effect, stored.bits)
        places = masks.elements if self.tensor.is_contiguous() else _offsets(self.tensor, masks.elements)
        if not memory.is_cpu:
            places = places.to(memory.device)
        before = memory.index_select(0, places)
        faulty = self._corrupted(before, masks, stored)
        # First, as an interrupt may come next.
        undo.append(partial(self._put_back, stored, memory, places, before, _stamp(self.tensor)))
        memory.index_copy_(0, places, faulty)

    def _corrupted(self, before: Tensor, masks: Masks, stored: Format) -> Tensor:
        # On the CPU whatever the model's device: the faulty words are then the same everywhere.
        scale = self._scale(stored, masks.elements)
        words = stored.encode(before.cpu().view(self.dtype), scale)
        broken = masks.applied(words)
        return written_back(stored.decode(broken, scale), self.dtype).view(before.dtype).to(before.device)

    def _put_back(self, stored: Format, memory: Tensor, places: Tensor, before: Tensor, stamp: Stamp | None) -> None:
        memory.index_copy_(0, places, before)
        if self.tensor.data_ptr() != memory.data_ptr():
            raise FaultError(
                f"tensor {self.name!r} was moved or cast while faults were applied and took them along; "
                "load the model's weights again, and move it outside the block"
            )
        if self._scales and stored in self._scales and stamp is not None:
            now = (stamp[0], stamp[1] + 2)
            if _stamp(self.tensor) == now:  # nobody wrote to it but us, there and back: its scale is what it was
                self._scales[stored] = (now, self._scales[stored][1])

    def _scale(self, stored: Format, elements: Tensor) -> Tensor | None:
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
        return whole.expand(self.shape)[torch.unravel_index(elements, self.shape)]


def _stamp(tensor: Tensor) -> Stamp | None:
    """Changes whenever the tensor is written to; None where torch keeps no count."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)


def _raw_words(tensor: Tensor) -> Tensor:
    """A view of the storage behind `tensor`, flat and as integers. Autograd sees writes to it as in-place."""
    raw = tensor.view(RAW[tensor.element_size()])
    if raw.is_contiguous():
        return raw.view(-1)
    span = 1 + sum((size - 1) * stride for size, stride in zip(raw.shape, raw.stride(), strict=True))
    return raw.as_strided((span,), (1,))


def _offsets(tensor: Tensor, elements: Tensor) -> Tensor:
    """Where the elements, counted row by row, lie in `_raw_words(tensor)`."""
    places = torch.unravel_index(elements, tensor.shape)
    return sum(
        (place * stride for place, stride in zip(places, tensor.stride(), strict=True)), torch.zeros_like(elements)
    )
