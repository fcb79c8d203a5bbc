"""Which clean values are worth their memory."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fitact_fx.campaigns.suffix.slices import Dataflow, Slice, members, total


@dataclass(frozen=True)
class Demand:
    """Values that change together when something is hit, and how often that is."""

    dirty: int
    weight: float


@dataclass(frozen=True)
class Group:
    """Values that lie in the same memory: whoever keeps one keeps all, for `bytes`."""

    values: int
    bytes: float


def groups_of(candidates: int, storages: Sequence[frozenset[int]], sizes: Mapping[int, int]) -> list[Group]:
    """The candidates, grouped by memory: `storages` are those that each value lies in, `sizes` their bytes."""
    joined: list[tuple[int, frozenset[int]]] = []
    for number in members(candidates):
        values, held = 1 << number, storages[number]
        for other in [each for each in joined if each[1] & held]:
            joined.remove(other)
            values, held = values | other[0], held | other[1]
        joined.append((values, held))
    return [Group(values, sum(sizes[each] for each in held)) for values, held in joined]


def worth_keeping(
    flow: Dataflow, costs: Sequence[float], demands: Iterable[Demand], groups: Sequence[Group], budget: float
) -> int:
    """The values of `groups` to keep within `budget` bytes, so that meeting the demands costs little.

    First all, then what saves least per byte goes, until the rest fits; what fits after that comes back. What a value
    saves is what its demands cost without it: all of the way there from what is still kept.
    """
    choice = _Choice(flow, costs, tuple(demands), sum(group.values for group in groups))
    spent = sum(group.bytes for group in groups)
    dropped = choice.drop(groups, spent - budget)
    spent -= sum(group.bytes for group in dropped)
    choice.take_back(dropped, budget - spent)
    return choice.kept


class _Choice:
    def __init__(self, flow: Dataflow, costs: Sequence[float], demands: tuple[Demand, ...], kept: int) -> None:
        self.flow, self.costs, self.demands, self.kept = flow, costs, demands, kept
        self.slices = [flow.slice(demand.dirty, kept) for demand in demands]

    def drop(self, groups: Sequence[Group], excess: float) -> list[Group]:
        """Let go of groups until this many bytes are free; which ones."""
        dropped: list[Group] = []
        if excess <= 0:
            return dropped
        sized = [number for number, group in enumerate(groups) if group.bytes]
        heap = [(self._loss(groups[number]), number) for number in sized]
        heapq.heapify(heap)
        while excess > 0 and heap:
            _, number = heapq.heappop(heap)
            group = groups[number]
            # What was worked out before others went is asked anew, and may then no longer be the least.
            loss = self._loss(group)
            if heap and loss > heap[0][0]:
                heapq.heappush(heap, (loss, number))
                continue
            self._let_go(group)
            dropped.append(group)
            excess -= group.bytes
        return dropped

    def take_back(self, dropped: list[Group], room: float) -> None:
        """Keep again what fits: what went last was worth most."""
        for group in reversed(dropped):
            if group.bytes <= room:
                self.kept |= group.values
                room -= group.bytes

    def _loss(self, group: Group) -> float:
        """How much more the demands cost per byte of this group without it."""
        kept, more = self.kept & ~group.values, 0.0
        for demand, now in zip(self.demands, self.slices, strict=True):
            if group.values & now.loaded:
                more += demand.weight * self._difference(now, self.flow.slice(demand.dirty, kept))
        return more / group.bytes

    def _let_go(self, group: Group) -> None:
        self.kept &= ~group.values
        for number, demand in enumerate(self.demands):
            if group.values & self.slices[number].loaded:
                self.slices[number] = self.flow.slice(demand.dirty, self.kept)

    def _difference(self, now: Slice, then: Slice) -> float:
        more, less = then.executed & ~now.executed, now.executed & ~then.executed
        return total(self.costs, more) - total(self.costs, less)
