"""What depends on what among the values of a graph, and what must run for the output: pure reasoning on numbers.

Values are numbered in the order in which a graph makes them. A set of values is an int: bit i stands for value i.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


def members(values: int) -> Iterator[int]:
    """The numbers in a set, ascending."""
    while values:
        lowest = values & -values
        yield lowest.bit_length() - 1
        values ^= lowest


def as_set(numbers: Iterable[int]) -> int:
    """The set of these numbers."""
    values = 0
    for number in numbers:
        values |= 1 << number
    return values


class Slice(NamedTuple):
    """What a run must do: compute `executed`, in order, from what is there already, `loaded`."""

    executed: int
    loaded: int


@dataclass(frozen=True, eq=False)
class Dataflow:
    """Which values each value is computed from. `given` ones, the arguments, are there without being computed.

    `roots` are what a run is for: the output, and whatever may raise an error.
    """

    inputs: tuple[int, ...]
    given: int
    roots: int

    def dirty(self, sources: int, clean: int = 0) -> int:
        """The values that may change if `sources` are computed differently, where those in `clean` are known not to."""
        changed = 0
        for number in range((sources & -sources).bit_length() - 1 if sources else len(self.inputs), len(self.inputs)):
            bit = 1 << number
            if (sources & bit or self.inputs[number] & changed) and not clean & bit:
                changed |= bit
        return changed

    def slice(self, dirty: int, kept: int) -> Slice:
        """What must run for the dirty roots, if the clean values of `kept` are there."""
        executed = loaded = 0
        there = self.given | kept & ~dirty
        needed = self.roots & dirty
        while needed:
            number = needed.bit_length() - 1
            bit = 1 << number
            needed ^= bit
            if there & bit:
                loaded |= bit
            else:
                executed |= bit
                needed |= self.inputs[number]
        return Slice(executed, loaded)

    def last_uses(self, executed: int) -> dict[int, tuple[int, ...]]:
        """Value -> the values that no later one of `executed` is computed from; roots are never among them."""
        seen, uses = self.roots, {}
        for number in reversed(list(members(executed))):
            new = self.inputs[number] & ~seen
            seen |= new
            uses[number] = tuple(members(new))
        return uses


def total(costs: Sequence[float], values: int) -> float:
    """The sum of their costs."""
    return sum(costs[number] for number in members(values))
