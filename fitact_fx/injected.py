"""The one module inserted where activations are to be hit: an injection node.

Its faults are tensors, drawn elsewhere and loaded into buffers of a fixed size, padded with rows that do
nothing. So a new trial changes no shape, and compiled code runs it without being compiled again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
    def scale(self, values: Tensor, *, each: bool = False) -> Tensor | None: ...
    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor: ...
    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor: ...


class NodeName(NamedTuple):
    """What the activation at a node is called in a fault list: `layer1.0.relu@after`, `layer1.0.relu@after:permanent`.

    Whether its faults are permanent is part of the name, so that a list for one kind fits only that kind.
    """

    point: str
    where: str
    permanent: bool

    @classmethod
    def parse(cls, name: str) -> "NodeName | None":
        """The parts of such a name; None for that of a tensor in memory."""
        point, at, where = name.rpartition("@")
        side, _, lasting = where.partition(":")
        return cls(point, side, bool(lasting)) if at else None

    def __str__(self) -> str:
        return f"{self.point}@{self.where}{':permanent' if self.permanent else ''}"


def written_back(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """What a format decoded, in the type of the tensor it goes to; bits of that type stay as they are."""
    if numbers.dtype == dtype:
        return numbers
    cast = numbers.to(dtype)
    # Which NaN a cast makes differs between machines, and between eager and compiled code.
    return torch.where(cast.isnan(), torch.nan, cast)


class Injected(nn.Module):
    """Hits elements of the activation that passes: (N, ...) -> the same shape, type and memory layout.

    The word of a hit element becomes `(word & keep) ^ flip`; every other element keeps its bits, and the
    input is never written to. A smaller batch than the one that faults were drawn for is its beginning: faults
    of the missing samples are left out. `permanent` faults hit the same element of every sample.

    `overwritten` is whether something behind it writes to its result in place.

    `rows` (rank + 2, capacity) int64 holds a fault per column: the element's index in each dimension, then
    `keep` and `flip`. Columns ascend by index; those behind the first `hits` are padding, and do nothing.
    """

    rows: Tensor

    def __init__(
        self, point: str, where: str, source: str, stored: WordFormat, *, permanent: bool, overwritten: bool = False
    ) -> None:
        super().__init__()
        self.name = str(NodeName(point, where, permanent))
        self.source = source
        self.format = stored
        self.permanent = permanent
        self.overwritten = overwritten
        self.shape: tuple[int, ...] | None = None
        self.observing = False
        self.hits, self.clears = 0, False
        self.register_buffer("rows", None, persistent=False)

    def prepare(self, shape: tuple[int, ...], capacity: int, device: torch.device) -> None:
        """Make room for `capacity` hit elements of activations of that shape."""
        if not shape:
            raise self._error("its value has no dimensions", "inject at a value with at least a batch dimension")
        self.shape = (1, *shape[1:]) if self.permanent else shape
        with torch.inference_mode(False):  # an inference tensor could not be written to outside of that mode
            self.rows = torch.zeros(len(shape) + 2, capacity, dtype=torch.int64, device=device)
            self.rows[-2] = -1

    @property
    def loaded(self) -> Tensor:
        """A copy of the faults that are loaded, (rank + 2, n)."""
        return self.rows[:, : self.hits].clone()

    def load(self, rows: Tensor, clears: bool = True) -> None:
        """Take these faults, (rank + 2, n), in the place of others; `clears` is whether any clears a bit.

        FaultError, with nothing loaded, if there is no room.
        """
        hits, capacity = rows.shape[1], self.rows.shape[1]
        if hits > capacity:
            raise FaultError(
                f"activation {self.name!r} has room for {capacity} hit elements and the fault list has {hits};\n"
                f"  inject with capacity={hits} or more"
            )
        # The number goes up first and down last: an interrupt leaves no fault that the next `load` would not find.
        self.hits, self.clears = max(hits, self.hits), True
        padding = self.rows[:, hits : self.hits]
        padding.zero_()
        padding[-2] = -1
        self.rows[:, :hits] = rows
        self.hits, self.clears = hits, clears

    def forward(self, values: Tensor) -> Tensor:
        self._check(values)
        if self.observing or values.shape[0] == 0:
            return values
        faulty = self._in_graph(values) if torch.compiler.is_compiling() else self._eagerly(values)
        if not values.requires_grad or faulty is values:
            return faulty
        # A word has no gradient: elements that are not hit keep theirs.
        raw = RAW[values.element_size()]
        return torch.where(faulty.view(raw) == values.detach().view(raw), values, faulty)

    def _eagerly(self, values: Tensor) -> Tensor:
        """Without padding: only what is loaded, and of that the faults of samples that are there."""
        hits = self.hits
        if not self.permanent and self.shape is not None and len(values) < self.shape[0]:
            hits = int((self.rows[0, :hits] < len(values)).sum())
        if hits == 0:
            # What writes to the result in place must not reach the input, which may be the caller's.
            return values.clone() if self.overwritten else values
        *index, keep, flip = self.rows[:, :hits].unbind(0)
        raw, places = values.detach().view(RAW[values.element_size()]), self._places(index, values)
        broken = self._broken(raw[places], places[0], keep if self.clears else None, flip, values)
        return raw.index_put(places, broken).view(values.dtype)

    def _in_graph(self, values: Tensor) -> Tensor:
        """With everything that there is room for, since what is loaded must not reach compiled code."""
        *index, keep, flip = self.rows.unbind(0)
        touched = (keep != -1) | (flip != 0)
        if not self.permanent:
            inside = index[0] < values.shape[0]
            touched = touched & inside
            index[0] = torch.where(inside, index[0], 0)
        raw, places = values.detach().view(RAW[values.element_size()]), self._places(index, values)
        before = raw[places]
        # Differences are added, and not words put, so that padding, which all points to one element, does nothing to
        # it. Integers wrap: a difference is exact whatever the words are. They are collected apart, because the
        # inductor of torch 2.15 loses what index_put adds to a computed tensor that is viewed as another type.
        difference = torch.where(touched, self._broken(before, places[0], keep, flip, values) - before, 0)
        return (raw + torch.zeros_like(raw).index_put(places, difference, accumulate=True)).view(values.dtype)

    def _places(self, index: list[Tensor], values: Tensor) -> tuple[Tensor, ...]:
        """One index per dimension; a permanent fault is in every sample."""
        sample, *others = index
        return (torch.arange(len(values), device=sample.device)[:, None] if self.permanent else sample, *others)

    def _broken(self, raw: Tensor, sample: Tensor, keep: Tensor | None, flip: Tensor, values: Tensor) -> Tensor:
        """What the raw words of some of the values become; without `keep`, all of their bits are kept."""
        scale = self.format.scale(values.detach(), each=True)
        scale = scale if scale is None or scale.ndim == 0 else scale.reshape(-1)[sample]
        words = self.format.encode(raw.view(values.dtype), scale)
        kept = words if keep is None else words & keep.to(words.dtype)
        return written_back(self.format.decode(kept ^ flip.to(words.dtype), scale), values.dtype).view(raw.dtype)

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
        room = "not prepared" if self.shape is None else f"{self.shape}, room for {self.rows.shape[1]}"
        return f"{self.name}, {self.format.name}, {room}"


@contextmanager
def clean(model: nn.Module) -> Iterator[None]:
    """Inside, the injection nodes of `model` let everything pass as it is."""
    nodes = [module for module in model.modules() if isinstance(module, Injected) and not module.observing]
    for node in nodes:
        node.observing = True
    try:
        yield
    finally:
        for node in nodes:
            node.observing = False
