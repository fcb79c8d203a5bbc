"""The faults of one tensor, and the table that shows them one by one."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from fitact_fx.errors import FaultError
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format

Elements = NDArray[np.int64]
Values = NDArray[np.uint32]
Words = NDArray[np.signedinteger]


class Fault(NamedTuple):
    """One bit of one element; the element counted row by row, bit 0 the least significant."""

    tensor: str
    element: int
    bit: int


class WordFault(NamedTuple):
    """One element, counted row by row, and the word that takes the place of its own."""

    tensor: str
    element: int
    word: int


Row = Fault | WordFault


class Masks(NamedTuple):
    """Each hit element once, (m,) int64, and what is cleared and flipped in its word, (m,) in the words' own type.

    `clear` is None where nothing is cleared.
    """

    elements: Elements
    clear: Words | None
    flip: Words

    def applied(self, words: Words) -> Words:
        """What becomes of these words, in the order of `elements`."""
        return words ^ self.flip if self.clear is None else (words & ~self.clear) ^ self.flip


@dataclass(frozen=True, eq=False)
class TensorFaults:
    """Which elements of one tensor are hit, and how; possibly none.

    `elements` (n,) int64 are indices into the tensor read row by row, whatever its memory layout; `values`
    (n,) uint32 name the bit that is hit or the word that is put there, as the list's effect says. Each
    pair stands once, in ascending order. FaultError otherwise. `own` is the format of the tensor's words where
    it is not the list's.
    """

    name: str
    shape: tuple[int, ...]
    elements: Elements
    values: Values
    own: Format | None = None
    _masks: dict[tuple[str, int], Masks] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, dtype in (("elements", np.int64), ("values", np.uint32)):
            given = np.asarray(getattr(self, name))
            own = given.astype(dtype)  # a copy, that nobody can write to
            own.setflags(write=False)
            if given.dtype != dtype and (own != given).any():
                raise FaultError(f"tensor {self.name!r}: {name} do not fit in {own.dtype}")
            object.__setattr__(self, name, own)
        if self.elements.shape != self.values.shape or self.elements.ndim != 1:
            raise FaultError(f"tensor {self.name!r}: needs as many bits or words as elements, one after the other")
        if len(self):
            self._check_rows()

    @classmethod
    def drawn(
        cls, name: str, shape: tuple[int, ...], elements: Elements, values: Values, own: Format | None
    ) -> "TensorFaults":
        """From arrays of the right types, in order, that nobody else holds: nothing is checked or copied."""
        one = object.__new__(cls)
        given = {"name": name, "shape": shape, "elements": elements, "values": values, "own": own}
        for field_name, value in given.items():
            object.__setattr__(one, field_name, value)
        object.__setattr__(one, "_masks", {})
        elements.setflags(write=False)
        values.setflags(write=False)
        return one

    def _check_rows(self) -> None:
        if self.elements.min() < 0 or self.elements.max() >= prod(self.shape):
            raise FaultError(f"tensor {self.name!r} has {prod(self.shape)} elements; a fault lies outside them")
        step, same = np.diff(self.elements), np.diff(self.values.astype(np.int64)) <= 0
        if (step < 0).any() or (same & (step == 0)).any():
            raise FaultError(f"tensor {self.name!r}: faults must ascend by element, then bit, each only once")

    def __len__(self) -> int:
        return len(self.elements)

    def masks(self, effect: Effect, bits: int) -> Masks:
        """The same for words of so many bits; made once."""
        key = (effect.name, bits)
        if key not in self._masks:
            elements, hit = self.elements, self.values.astype(np.int64)
            if not effect.of_word:
                hit = np.left_shift(1, hit)
                if len(hit) > 1 and not (elements[1:] != elements[:-1]).all():  # several bits of one word are hit
                    starts = np.flatnonzero(np.diff(elements, prepend=-1))
                    elements, hit = elements[starts], np.bitwise_or.reduceat(hit, starts)
            clear, flip = effect.masks(hit)
            dtype = np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32
            self._masks[key] = Masks(elements, None if clear is None else clear.astype(dtype), flip.astype(dtype))
        return self._masks[key]


class Rows(Sequence[Row]):
    """Every fault of a list, tensor by tensor; made when looked at."""

    def __init__(self, tensors: Sequence[TensorFaults], effect: Effect) -> None:
        self._tensors = tensors
        self._row = WordFault if effect.of_word else Fault
        self._ends = list(accumulate(map(len, tensors)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        chosen = range(len(self))[index]
        return [self._at(each) for each in chosen] if isinstance(chosen, range) else self._at(chosen)

    def __iter__(self) -> Iterator[Row]:
        for one in self._tensors:
            for element, value in zip(one.elements.tolist(), one.values.tolist(), strict=True):
                yield self._row(one.name, element, value)

    def __repr__(self) -> str:
        more = f", ... {len(self)} in all" if len(self) > 3 else ""
        return f"[{', '.join(map(repr, self[:3]))}{more}]"

    def _at(self, index: int) -> Row:
        which = bisect_right(self._ends, index)
        one = self._tensors[which]
        within = index - self._ends[which]  # counted from the tensor's end
        return self._row(one.name, int(one.elements[within]), int(one.values[within]))
