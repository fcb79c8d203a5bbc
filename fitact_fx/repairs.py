"""What a scrub found and put right."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple, overload

from torch import Tensor

from fitact_fx.parameter_limits import same_bits

_SHOWN = 10
_AT_ONCE = 1024


@dataclass(frozen=True)
class RepairedElement:
    """An element of a parameter that was outside its limits, and is 0 now."""

    tensor: str
    index: tuple[int, ...]
    found: float
    low: float
    high: float

    def __str__(self) -> str:
        at = f"{self.tensor}{list(self.index)}"
        return f"{at} was {self.found:.6g}, outside {self.low:.6g} to {self.high:.6g}: now 0"


class Cleared(NamedTuple):
    """The elements of one tensor that were outside: their indices (n, dimensions), and (n,) what and between which."""

    tensor: str
    places: Tensor
    found: Tensor
    low: Tensor
    high: Tensor

    def elements(self, start: int, stop: int) -> Iterator[RepairedElement]:
        """Those from `start` to before `stop`."""
        for index, *numbers in zip(*(each[start:stop].tolist() for each in self[1:]), strict=True):
            yield RepairedElement(self.tensor, tuple(index), *numbers)

    def tells_the_same(self, other: "Cleared") -> bool:
        """Whether the same words were found at the same places, between the same limits: a NaN equals itself here."""
        return self.tensor == other.tensor and all(map(same_bits, self[1:], other[1:]))


class RepairedElements(Sequence[RepairedElement]):
    """All elements that were repaired, each made when it is asked for: a broken tensor has millions."""

    def __init__(self, cleared: Iterable[Cleared]) -> None:
        self._cleared = tuple(cleared)
        self._ends = tuple(accumulate(len(each.places) for each in self._cleared))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> RepairedElement: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RepairedElement, ...]: ...
    def __getitem__(self, index: int | slice) -> RepairedElement | tuple[RepairedElement, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(len(self))[index])
        number = range(len(self))[index]  # negative ones count from the end
        tensor = bisect_right(self._ends, number)
        place = number - self._ends[tensor] + len(self._cleared[tensor].places)
        return next(self._cleared[tensor].elements(place, place + 1))

    def __iter__(self) -> Iterator[RepairedElement]:
        for each in self._cleared:
            for start in range(0, len(each.places), _AT_ONCE):
                yield from each.elements(start, start + _AT_ONCE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RepairedElements):
            return NotImplemented
        return self._ends == other._ends and all(
            one.tells_the_same(two) for one, two in zip(self._cleared, other._cleared, strict=True)
        )

    def __hash__(self) -> int:
        return hash((self._ends, tuple(each.tensor for each in self._cleared)))

    def __repr__(self) -> str:
        rows = [repr(row) for row in islice(self, _SHOWN)]
        more = [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return f"RepairedElements({', '.join([*rows, *more])})"


@dataclass(frozen=True)
class RepairedLimit:
    """A number in one copy of a parameter's limits that had other bits than the copies agree on, and has those now.

    `range` counts a parameter's ranges; `side` is "low" or "high".
    """

    tensor: str
    copy: str
    side: str
    range: int
    found: float
    limit: float

    def __str__(self) -> str:
        at = f"the {self.side} limit of {self.tensor}, range {self.range}, in {self.copy}"
        return f"{at} was {self.found:.6g}: now {self.limit:.6g}"


@dataclass(frozen=True)
class Scrubbed:
    """What `scrub` repaired: nothing if it is false. `tensors` is how many parameters it checked."""

    elements: Sequence[RepairedElement]
    limits: tuple[RepairedLimit, ...]
    tensors: int

    def __len__(self) -> int:
        return len(self.elements) + len(self.limits)

    def __str__(self) -> str:
        checked = f"{self.tensors} parameters checked"
        if not self:
            return f"{checked}, nothing to repair"
        rows = [f"  {row}" for row in islice(chain(self.elements, self.limits), _SHOWN)]
        more = [f"  and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        what = f"{len(self.elements)} elements and {len(self.limits)} copies of limits repaired"
        return "\n".join([f"{checked}, {what}:", *rows, *more])

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs; NaN and infinities, which JSON has not, as words."""
        rows = {"elements": self.elements, "limits": self.limits}
        return {"tensors": self.tensors} | {
            name: [{key: _plain(value) for key, value in asdict(row).items()} for row in those]  # type: ignore[call-overload]
            for name, those in rows.items()
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
