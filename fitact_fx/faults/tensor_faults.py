"""The faults of one tensor, and the table that shows them one by one."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from fitact_fx.errors import FaultError


class Fault(NamedTuple):
    """One bit of one element; the element counted row by row, bit 0 the least significant."""

    tensor: str
    element: int
    bit: int


@dataclass(frozen=True, eq=False)
class TensorFaults:
    """Which bits of which elements of one tensor are hit; possibly none.

    `elements` (n,) int64 are indices into the tensor read row by row, whatever its memory layout, `bits`
    (n,) uint8. Each pair stands once, in ascending order. FaultError otherwise.
    """

    name: str
    shape: tuple[int, ...]
    elements: NDArray[np.int64]
    bits: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for field, dtype in (("elements", np.int64), ("bits", np.uint8)):
            given = np.asarray(getattr(self, field))
            own = given.astype(dtype)  # a copy, that nobody can write to
            own.setflags(write=False)
            if given.dtype != dtype and (own != given).any():
                raise FaultError(f"tensor {self.name!r}: {field} do not fit in {own.dtype}")
            object.__setattr__(self, field, own)
        if self.elements.shape != self.bits.shape or self.elements.ndim != 1:
            raise FaultError(f"tensor {self.name!r}: needs as many bits as elements, one after the other")
        if not len(self):
            return
        if self.elements.min() < 0 or self.elements.max() >= prod(self.shape):
            raise FaultError(f"tensor {self.name!r} has {prod(self.shape)} elements; a fault lies outside them")
        step, same = np.diff(self.elements), np.diff(self.bits.astype(np.int16)) <= 0
        if (step < 0).any() or (same & (step == 0)).any():
            raise FaultError(f"tensor {self.name!r}: faults must ascend by element, then bit, each only once")

    def __len__(self) -> int:
        return len(self.elements)

    @cached_property
    def masks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each hit element once, and the word whose set bits are the hit ones; two (m,) int64."""
        starts = np.flatnonzero(np.diff(self.elements, prepend=-1))
        single = np.left_shift(np.int64(1), self.bits.astype(np.int64))
        return self.elements[starts], np.bitwise_xor.reduceat(single, starts) if len(self) else single


class Rows(Sequence[Fault]):
    """Every fault of a list, tensor by tensor; made when looked at."""

    def __init__(self, tensors: Sequence[TensorFaults]) -> None:
        self._tensors = tensors
        self._ends = list(accumulate(map(len, tensors)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Fault: ...
    @overload
    def __getitem__(self, index: slice) -> list[Fault]: ...
    def __getitem__(self, index: int | slice) -> Fault | list[Fault]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self._row(each) for each in chosen]
        return self._row(chosen)

    def __iter__(self) -> Iterator[Fault]:
        for one in self._tensors:
            for element, bit in zip(one.elements.tolist(), one.bits.tolist(), strict=True):
                yield Fault(one.name, element, bit)

    def __repr__(self) -> str:
        more = f", ... {len(self)} in all" if len(self) > 3 else ""
        return f"[{', '.join(map(repr, self[:3]))}{more}]"

    def _row(self, index: int) -> Fault:
        which = bisect_right(self._ends, index)
        one = self._tensors[which]
        within = index - self._ends[which]  # counted from the tensor's end
        return Fault(one.name, int(one.elements[within]), int(one.bits[within]))
