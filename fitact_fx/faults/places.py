"""Faults at exact places: from what a user writes to positions in a tensor's memory."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitact_fx.errors import FaultError
from fitact_fx.faults.memory import Memory

# (tensor name, element, bit), or (tensor name, element) for whole words; whatever else a user gives is refused
Place = Any
Integers = NDArray[np.int64]


def check_form(places: Sequence[Place], *, of_word: bool) -> None:
    """FaultError for no places at all, and for a place of another form."""
    form = "(tensor name, element)" if of_word else "(tensor name, element, bit)"
    if not places:
        raise FaultError(f"places is empty, so there is nothing to hit;\n  give {form} for each")
    for place in places:
        if not isinstance(place, tuple) or len(place) != (2 if of_word else 3) or not isinstance(place[0], str):
            raise FaultError(f"{place!r} is no place of this fault;\n  write {form}")


def positions_of(
    places: Sequence[Place],
    memory: Memory,
    shapes: Mapping[str, tuple[int, ...]],
    ways: Mapping[str, Integers],
    *,
    of_word: bool,
) -> dict[str, Integers]:
    """Tensor name -> positions, counted element by element and way by way of that tensor; ascending.

    FaultError for a place outside its tensor or its word, named twice, or in a tensor that `shapes` has not.
    """
    found: dict[str, list[int]] = {name: [] for name in shapes}
    for place in places:
        name = memory.find(place[0]).name
        if name not in shapes:
            raise FaultError(f"place {place!r} is in a tensor that is not among the targets")
        way = 0 if of_word else _way(place, ways[name])
        found[name].append(_element(place, shapes[name]) * len(ways[name]) + way)
    for name, positions in found.items():
        if len(set(positions)) != len(positions):
            raise FaultError(f"a place in tensor {name!r} is given twice")
    return {name: np.array(sorted(positions), np.int64) for name, positions in found.items()}


def is_whole(number: object) -> bool:
    """Whether it is a whole number, NumPy's included; True and False are not."""
    return hasattr(number, "__index__") and not isinstance(number, bool)


def _way(place: Place, ways: Integers) -> int:
    bits = ways.tolist()
    if place[2] not in bits:
        raise FaultError(f"place {place!r}: bit {place[2]} is not one that can be hit, which are {_spans(ways)}")
    return int(bits.index(place[2]))


def _element(place: Place, shape: tuple[int, ...]) -> int:
    by_index = isinstance(place[1], tuple | list)
    given: Sequence[Any] = place[1] if by_index else (place[1],)
    sizes: tuple[int, ...] = shape if by_index else (prod(shape),)
    whole = all(map(is_whole, given))
    if not whole or len(given) != len(sizes) or any(not 0 <= i < n for i, n in zip(given, sizes, strict=True)):
        raise FaultError(f"place {place!r} lies outside its tensor, whose shape is {shape}")
    element = 0
    for position, size in zip(given, sizes, strict=True):
        element = element * size + position
    return int(element)


def _spans(ways: Integers) -> str:
    """`0 to 3, 7`: runs of numbers."""
    if not len(ways):
        return "none"
    runs = np.split(ways, np.flatnonzero(np.diff(ways) != 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
