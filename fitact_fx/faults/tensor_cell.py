"""Faults into one tensor and out again, at a cost that grows with the faults and not with the tensor.

Only the hit elements are read, encoded, corrupted, decoded and written. Their raw bits are kept, not
their values, so that what is put back is what was there, NaN payloads included.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.raw_words import Extent, OnDevice, extent_of, offsets, raw_words
from fitact_fx.faults.tensor_faults import Elements, Masks, TensorFaults, Words
from fitact_fx.injected import RAW, written_back

COMPILED = "_orig_mod"  # under which torch.compile keeps the module that it wraps
_WATCHED = 16


class Undo(Protocol):
    """How to undo the faults in one cell; see `HitTensor`."""

    @property
    def name(self) -> str: ...
    @property
    def changes(self) -> bool: ...
    def applied(self) -> None: ...
    def disturbed(self) -> str | None: ...
    def undo(self) -> None: ...
    def settle(self) -> None: ...


@dataclass
class KnownScale:
    """A format's scale of one tensor, which holds until the tensor is written to.

    torch counts writes, but not those through `.data` or NumPy; so a few words of the tensor are watched as well.
    """

    scale: Tensor
    version: int
    watched: Elements
    words: Words


@dataclass(frozen=True, eq=False)
class TensorCell:
    """One tensor of a model, as it was when the model's memory was looked through.

    `name` is the first of its `names` in alphabetical order: the order of registration differs between a
    model and its hardened variant. `kind` is one of `targets.KINDS`; `overlap` the name of another tensor that shares
    part of its memory, in another shape.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    tensor: Tensor
    shape: tuple[int, ...]
    extent: Extent
    counted: bool  # whether torch counts the writes to it
    overlap: str | None = None
    scales: dict[str, KnownScale] = field(default_factory=dict)
    own: Format | None = None  # in which its words lie, whatever others are thought of as stored in: of packed bounds

    @property
    def storage(self) -> int:
        """Equal for cells that may share memory, in whichever model."""
        return self.tensor.untyped_storage().data_ptr() or id(self.tensor)

    def misfit(self, stored: Format) -> str | None:
        """Why faults in numbers of that format cannot be put into this tensor; None if they can."""
        if self.tensor.is_meta:
            return "is on the meta device and holds no numbers; move the model to a real device"
        if self.overlap is not None:
            return f"shares memory with {self.overlap!r}, which is another view of it; give it memory with .clone()"
        if any(stride == 0 and size > 1 for size, stride in zip(self.shape, self.tensor.stride(), strict=True)):
            return "is expanded: several of its elements are one number in memory; give it memory with .clone()"
        stored = self.own or stored
        if self.tensor.dtype in stored.dtypes:
            return None
        found, *fitting = (str(dtype).removeprefix("torch.") for dtype in (self.tensor.dtype, *stored.dtypes))
        return (
            f"is {found}, which cannot hold {stored.name} numbers; "
            f"choose another format, or convert the model to {' or '.join(fitting)}"
        )

    def is_in(self, model: nn.Module, name: str) -> bool:
        """Whether `model` still has this tensor under that name, where it was and of the same shape and type."""
        owner: nn.Module | None = model
        *path, last = name.split(".")
        for step in path:
            owner = None if owner is None else owner._modules.get(step)
            owner = owner if owner is None else owner._modules.get(COMPILED, owner)
        if owner is None:
            return False
        found = owner._parameters.get(last, owner._buffers.get(last))
        return found is not None and extent_of(found) == self.extent

    @property
    def is_unmoved(self) -> bool:
        """Whether the tensor lies where it lay, of the same shape and type."""
        return extent_of(self.tensor) == self.extent

    def hit(self, stored: Format, effect: Effect, faults: TensorFaults, undo: list[Undo]) -> None:
        """Put the faults in; what is added to `undo` puts back what was there."""
        stored = self.own or stored
        masks = faults.masks(effect, stored.bits)
        memory = raw_words(self.tensor)
        places = offsets(self.tensor, masks.elements)
        before = memory[places]
        own = stored.is_own(self.tensor.dtype)
        faulty = masks.applied(before) if own else self._corrupted(memory, before, masks, stored)
        # First, as an interrupt may come next.
        undo.append(HitTensor(self, memory, places, before))
        self.write(memory, places, faulty)

    @property
    def version(self) -> int | None:
        """Grows with every write; None where torch keeps no count."""
        return self.tensor._version if self.counted else None

    def _corrupted(self, memory: Words | OnDevice, before: Words, masks: Masks, stored: Format) -> Words:
        scale = self._scale(stored, memory, masks.elements)
        words = stored.encode(torch.from_numpy(before).view(self.tensor.dtype), scale)
        broken = torch.from_numpy(masks.applied(words.numpy()))
        return written_back(stored.decode(broken, scale), self.tensor.dtype).view(RAW[self.tensor.itemsize]).numpy()

    def write(self, memory: Words | OnDevice, places: Elements, words: Words) -> None:
        """Put these raw words there."""
        memory[places] = words
        if self.counted:
            increment_version(self.tensor)  # autograd is to see it, and so are we

    def _scale(self, stored: Format, memory: Words | OnDevice, elements: Elements) -> Tensor | None:
        """The format's scale at these elements: one number, or (n,)."""
        known, version = self.scales.get(stored.name), self.version
        if known is None or known.version != version or (memory[known.watched] != known.words).any():
            whole = stored.scale(self.tensor.detach())
            if whole is None:
                return None
            watched = offsets(self.tensor, np.linspace(0, prod(self.shape) - 1, _WATCHED).astype(np.int64))
            known = KnownScale(whole.cpu(), -1 if version is None else version, watched, memory[watched])
            self.scales[stored.name] = known
        if known.scale.numel() == 1:
            return known.scale.reshape(())
        return torch.from_numpy(known.scale.expand(self.shape).numpy()[np.unravel_index(elements, self.shape)])


class HitTensor:
    """How to undo the faults in one tensor."""

    __slots__ = ("before", "cell", "clean", "memory", "places", "pointer", "version")

    def __init__(self, cell: TensorCell, memory: Words | OnDevice, places: Elements, before: Words) -> None:
        self.cell = cell
        self.memory, self.places, self.before = memory, places, before
        self.pointer, self.clean = cell.tensor.data_ptr(), cell.version
        self.version: int | None = None

    @property
    def name(self) -> str:
        """The tensor's."""
        return self.cell.name

    @property
    def changes(self) -> bool:
        """Whether any word is another one than before."""
        return bool((self.memory[self.places] != self.before).any())

    def applied(self) -> None:
        """All faults of the list are in: from now on nobody else is to write. Views may share the count of writes."""
        self.version = self.cell.version

    def disturbed(self) -> str | None:
        """What happened to the tensor since then that cannot be undone; None if nothing did."""
        name = self.cell.name
        if self.cell.tensor.data_ptr() != self.pointer:
            return (
                f"tensor {name!r} was moved or cast while faults were applied and took them along; "
                "load the model's weights again, and move it outside the block"
            )
        if self.version is not None and self.cell.version != self.version:
            return (
                f"tensor {name!r} was written to while faults were applied; its hit elements are what they were "
                "before the block, and the others what was written; write to it outside the block"
            )
        return None

    def undo(self) -> None:
        """Put back the bits that were there."""
        self.cell.write(self.memory, self.places, self.before)

    def settle(self) -> None:
        """All is undone, and nobody else wrote: the scales are what they were."""
        for known in self.cell.scales.values():
            if known.version == self.clean and self.cell.version is not None:
                known.version = self.cell.version
