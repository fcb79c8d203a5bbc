"""What to run, and in which order, where certain values are computed differently."""

from collections import OrderedDict
from typing import NamedTuple

from fitact_fx.campaigns.suffix.slices import members
from fitact_fx.campaigns.suffix.steps import Reader, Steps

_PLANS = 512


class Planned(NamedTuple):
    """One step of a plan: which value, how, whether to compare it with the clean one, what is not needed after it."""

    number: int
    run: Reader
    compared: bool
    used_up: tuple[int, ...]


class Plan(NamedTuple):
    """The values to begin with, and the steps; `executed` is the set of what they compute."""

    loaded: tuple[int, ...]
    steps: tuple[Planned, ...]
    executed: int


class Plans:
    """Makes plans, and remembers the latest."""

    def __init__(self, steps: Steps, *, compare: bool) -> None:
        self._steps, self._compare = steps, compare
        self._made: OrderedDict[tuple[int, int], Plan | None] = OrderedDict()

    def of(self, sources: int, kept: int) -> Plan | None:
        """What to do where `sources` are computed differently and `kept` are there; None if that changes nothing."""
        key = sources, kept
        if key not in self._made:
            self._made[key] = self._planned(sources, kept)
            if len(self._made) > _PLANS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def _planned(self, sources: int, kept: int) -> Plan | None:
        flow = self._steps.flow
        dirty = flow.dirty(sources)
        if not dirty & flow.roots:
            return None
        executed, loaded = flow.slice(dirty, kept)
        uses, compared = flow.last_uses(executed), dirty & kept if self._compare else 0
        steps = tuple(
            Planned(number, self._steps.run[number], bool(compared >> number & 1), uses[number])
            for number in members(executed)
        )
        return Plan(tuple(members(loaded)), steps, executed)
