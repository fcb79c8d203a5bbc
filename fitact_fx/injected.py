"""The one module inserted where activations are to be hit: an injection node.

Its faults are tensors, drawn elsewhere and loaded into buffers of a fixed size, padded with rows that do
nothing. So a new trial changes no shape, and compiled code runs it without being compiled again.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fitact_fx.errors import FaultError, SiteError, site_message

RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per element -> raw words


class WordFormat(Protocol):
    """What a node asks of a number format; `fitact_fx.faults.formats` has them."""

    @property
    def name(self) -> str: ...
    @property
    def dtypes(self) -> tuple[torch.dtype, ...]: ...
    def scale(self, values: Tensor) -> Tensor | None: ...
    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor: ...
    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor: ...


def written_back(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """What a format decoded, in the type of the tensor it goes to; bits of that type stay as they are."""
    if numbers.dtype == dtype:
        return numbers
    cast = numbers.to(dtype)
    # Which NaN a cast makes differs between machines, and between eager and compiled code.
    return torch.where(cast.isnan(), torch.nan, cast)


class Loaded(NamedTuple):
    """The faults that are in a node: `indices` (rank, capacity), `clear` and `flip` (capacity,), all int64."""

    indices: Tensor
    clear: Tensor
    flip: Tensor


class Injected(nn.Module):
    """Hits elements of the activation that passes: (N, ...) -> the same shape, type and memory layout.

    The word of a hit element becomes `(word & ~clear) ^ flip`; every other element keeps its bits, and the
    input is never written to. A smaller batch than the one that faults were drawn for is its beginning: faults
    of the missing samples are left out. `permanent` faults hit the same element of every sample.
    """

    indices: Tensor
    clear: Tensor
    flip: Tensor

    def __init__(self, point: str, where: str, source: str, stored: WordFormat, *, permanent: bool) -> None:
        super().__init__()
        self.name = f"{point}@{where}"
        self.source = source
        self.format = stored
        self.permanent = permanent
        self.shape: tuple[int, ...] | None = None
        self.observing = False
        for buffer in Loaded._fields:
            self.register_buffer(buffer, None, persistent=False)

    def prepare(self, shape: tuple[int, ...], capacity: int, device: torch.device) -> None:
        """Make room for `capacity` hit elements of activations of that shape."""
        if not shape:
            raise self._error("its value has no dimensions", "inject at a value with at least a batch dimension")
        self.shape = (1, *shape[1:]) if self.permanent else shape
        self.indices = torch.zeros(len(shape), capacity, dtype=torch.int64, device=device)
        self.clear = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.flip = torch.zeros(capacity, dtype=torch.int64, device=device)

    def load(self, indices: Tensor, clear: Tensor | None, flip: Tensor) -> None:
        """Take these faults: `indices` (rank, n) say where, `clear` (None: nothing) and `flip` (n,) what.

        FaultError, with nothing loaded, if there is no room.
        """
        hits, capacity = len(flip), len(self.flip)
        if hits > capacity:
            raise FaultError(
                f"activation {self.name!r} has room for {capacity} hit elements and the fault list has {hits};\n"
                f"  inject with capacity={hits} or more"
            )
        for buffer, rows in zip(self.loaded_now, (indices, clear, flip), strict=True):
            buffer.zero_()
            if rows is not None:
                buffer[..., :hits] = rows

    @property
    def loaded_now(self) -> Loaded:
        """The buffers themselves."""
        return Loaded(self.indices, self.clear, self.flip)

    def loaded(self) -> Loaded:
        """A copy of what is loaded, for `restore`."""
        return Loaded(*(buffer.clone() for buffer in self.loaded_now))

    def restore(self, loaded: Loaded) -> None:
        """Take back what `loaded` returned."""
        for buffer, before in zip(self.loaded_now, loaded, strict=True):
            buffer.copy_(before)

    def forward(self, values: Tensor) -> Tensor:
        self._check(values)
        if self.observing:
            return values
        raw = values.detach().view(RAW[values.element_size()])
        rows, touched = self._rows(values.shape[0])
        before = raw[rows]
        scale = self.format.scale(values.detach())
        words = self.format.encode(before.view(values.dtype), scale)
        broken = (words & ~self.clear.to(words.dtype)) ^ self.flip.to(words.dtype)
        after = written_back(self.format.decode(broken, scale), values.dtype).view(raw.dtype)
        # Adding differences lets the padding, which all points to one element, add nothing to it. Integers wrap, so
        # a difference is exact whatever the words are. They are collected apart: the inductor of torch 2.15 loses
        # what index_put adds to a computed tensor that is viewed as another type.
        differences = torch.zeros_like(raw).index_put(rows, torch.where(touched, after - before, 0), accumulate=True)
        faulty = raw + differences
        if not values.requires_grad:
            return faulty.view(values.dtype)
        # An integer has no gradient: elements that are not hit keep theirs.
        return torch.where(faulty == raw, values, faulty.view(values.dtype))

    def _rows(self, batch: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Where the faults are in a batch, one index per dimension, and which of them do something there."""
        touched = (self.clear | self.flip) != 0
        sample, *others = self.indices.unbind(0)
        if self.permanent:
            return (torch.arange(batch, device=sample.device)[:, None], *others), touched
        inside = sample < batch
        return (torch.where(inside, sample, 0), *others), touched & inside

    def _check(self, values: object) -> None:
        if not isinstance(values, Tensor):
            kind = type(values).__name__
            raise self._error(f"its value is a {kind} and not a tensor", "inject where one of its parts is used")
        if values.dtype not in self.format.dtypes:
            found, *fitting = (str(dtype).removeprefix("torch.") for dtype in (values.dtype, *self.format.dtypes))
            problem = f"its value is {found}, which cannot hold {self.format.name} numbers"
            raise self._error(problem, f"choose another format, or run the model in {' or '.join(fitting)}")
        if self.observing:
            return
        if self.shape is None:
            remedy = "give fitact_fx.inject example_inputs, or run what it returned once before compiling it"
            raise self._error("it has no faults yet, since the shape of its activations is not known", remedy)
        if values.shape[1:] != self.shape[1:] or (values.shape[0] > self.shape[0] and not self.permanent):
            problem = f"its faults are for activations of shape {self.shape} and it now gets {tuple(values.shape)}"
            raise self._error(problem, "inject with example_inputs of this size")

    def _error(self, problem: str, remedy: str) -> SiteError:
        return SiteError(site_message(self.name, self.source, problem, remedy))

    def extra_repr(self) -> str:
        room = "not prepared" if self.shape is None else f"{self.shape}, room for {len(self.clear)}"
        return f"{self.name}, {self.format.name}, {room}"
