"""What every fault model shares: how often it strikes, where, and how one trial of it is drawn.

A fault model says in how many ways one word can go wrong (`ways`): one per bit for a bit flip, one in all for
a word that becomes zero. A rate is the probability of each of these places, independently; a count draws
that many of them, none twice; `places` names them. Chance is only drawn here and in `rows`, from streams
keyed by (seed, trial, tensor name).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil, prod, sqrt
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.bits import bits_within
from fitact_fx.faults.cells import Cell
from fitact_fx.faults.drawing import draw_count, draw_positions, stream
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.fault_list import FaultList
from fitact_fx.faults.formats import Format, as_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.places import Place, check_form, is_whole, positions_of
from fitact_fx.faults.targets import Target
from fitact_fx.faults.tensor_faults import TensorFaults

Integers = NDArray[np.int64]
RawWords = Callable[[int], NDArray[np.uint64]]  # so many random words of 64 bits, always the same ones for one tensor

# A rate is drawn per tensor, so that a variant's own tensors (its bounds) are hit as well; a count is drawn over
# what all variants have.
_BY_RATE, _BY_COUNT = ("parameters", "bounds"), ("parameters",)


@dataclass(frozen=True, kw_only=True)
class FaultModel(ABC):
    """How a stored word goes wrong: exactly one of `rate`, `count` and `places`.

    `rate`: the probability of each place; `count`: how many places in all; `places`: which, as (tensor name,
    element, bit), or (tensor name, element) where whole words are hit. An element is a number, counted row by
    row, or a tuple of one index per dimension. FaultError for a rate outside [0, 1] or a negative count.
    """

    rate: float | None = None
    count: int | None = None
    places: Sequence[Place] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):  # a frozen value holds nothing that can be changed
            if isinstance(getattr(self, field.name), Iterable) and not isinstance(getattr(self, field.name), str):
                object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        given = [name for name in ("rate", "count", "places") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise FaultError(f"{type(self).__name__} takes one of rate, count and places; got {got}")
        if self.rate is not None and not (hasattr(self.rate, "__float__") and 0 <= self.rate <= 1):  # nor NaN
            raise FaultError(f"a bit error rate lies between 0 and 1; got {self.rate!r}")
        if self.count is not None and not (is_whole(self.count) and self.count >= 0):
            raise FaultError(f"a count of faults is a whole number from 0 up; got {self.count!r}")

    @property
    @abstractmethod
    def effect(self) -> Effect:
        """What happens to a word that is hit."""

    @property
    @abstractmethod
    def event(self) -> str:
        """In words: "a bit flips"."""

    @abstractmethod
    def ways(self, stored: Format) -> tuple[int, ...]:
        """In which ways one word can go wrong, ascending numbers: for single bits, the bits. FaultError if none."""

    def ways_of(self, cell: Cell, stored: Format) -> tuple[int, ...]:
        """The same for a word of that tensor: of its own format, where it has one, as far as that has such bits."""
        if cell.own is None:
            return self.ways(stored)
        within: Any = self
        bits = bits_within(getattr(self, "bits", None), cell.own)
        if bits == ():
            return ()
        if bits is not None:
            within = replace(within, bits=bits)
        try:
            return tuple(within.ways(cell.own))
        except FaultError:  # what these words are too narrow for does not happen to them
            return ()

    @abstractmethod
    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        """What is hit when `elements` (ascending) go wrong in these `ways`: (elements, bits or words), ascending."""

    def describe(self) -> str:
        """The fault model in words."""
        if self.rate is not None:
            return f"{self.event}, at each place with probability {self.rate:g}, independently"
        if self.count is not None:
            return f"{self.event}, at exactly {self.count} {'place' if self.count == 1 else 'places'} drawn from all"
        given = len(self.places or ())
        return f"{self.event}, at {given} given {'place' if given == 1 else 'places'}"

    def draw(
        self,
        model: nn.Module | Memory,
        format: str | Format = "q15.16",  # noqa: A002 - the word of the field, and of the public API
        seed: int = 0,
        trial: int = 0,
        targets: Sequence[str | Target] | None = None,
        inferences: int | None = None,
    ) -> FaultList:
        """The faults of one trial; the model is only looked at.

        `targets`: "parameters", "buffers", "bounds", "activations", each for all of them or with a glob over
        names, such as "parameters:layer1.*". By default, parameters and bounds for a rate, parameters for a
        count, and what is named for `places`. `inferences`: that many samples of each activation, in the place
        of the batch that the injection node was prepared for (see `FaultList.inferences`).

        Bounds that `store_bounds` has put in fewer bits are hit in the 8 or 16 bits of their own words (their scale in
        float32), whatever the format, in those of the chosen bits that such words have.

        At a rate a tensor's faults depend on the seed, the trial, its name and its size, and a count's on the names
        and sizes of all targets: in every variant of a model, on every machine, they are the same. FaultError
        for an unknown format or target, a tensor that cannot hold the format, a count beyond the number of places.
        """
        seed, trial = index(seed), index(trial)
        stored = as_format(format)
        memory = Memory.of(model)
        cells = self.cells(memory, targets)
        shapes = _shapes(cells, stored, inferences)
        usual = np.array(self.ways(stored), np.int64)
        ways = {
            cell.name: usual if cell.own is None else np.array(self.ways_of(cell, stored), np.int64) for cell in cells
        }
        hit = self._positions(memory, shapes, ways, seed, trial)
        tensors = []
        for cell in cells:
            name, elements = cell.name, hit[cell.name]
            values = elements
            if len(elements):
                elements, way = np.divmod(elements, len(ways[name]))
                words = partial(_raw_words, seed, trial, name)
                elements, values = self.rows(elements, ways[name][way], words, cell.own or stored)
            tensors.append(TensorFaults.drawn(name, shapes[name], elements, values.astype(np.uint32), cell.own))
        return FaultList(stored, tuple(tensors), self.effect, self.describe(), seed, trial)

    def room(self, name: str, elements: int, stored: Format) -> int:
        """How many elements of that tensor a trial can hit, but for a chance far below one in a billion."""
        if self.places is not None:
            return max(1, len([place for place in self.places if place[0] == name]))
        if self.count is not None:
            return max(1, min(self.count, elements))
        mean = float(self.rate or 0.0) * elements * len(self.ways(stored))
        return max(1, min(elements, ceil(mean + 8 * sqrt(mean)) + 8))

    def cells(self, memory: Memory, targets: Sequence[str | Target] | None = None) -> tuple[Cell, ...]:
        """What a draw with these `targets` can hit; FaultError as in `draw`."""
        if targets is not None and not targets:
            raise FaultError("targets is empty, so there is nothing to hit;\n  leave it out for the usual ones")
        if targets is not None:
            return memory.chosen([targets] if isinstance(targets, str | Target) else targets)
        if self.places is not None:
            check_form(self.places, of_word=self.effect.of_word)
            named = {memory.find(str(place[0])).name for place in self.places}
            return tuple(cell for cell in memory.cells if cell.name in named)
        if memory.lowered and self.count is None:
            problem = "the bounds of a lowered model are constants in its code, so a rate would leave them out"
            raise FaultError(f'{problem};\n  draw on the hardened model, or give targets=["parameters"]')
        usual = {cell.kind for cell in memory.cells} & set(_BY_RATE if self.count is None else _BY_COUNT)
        return memory.chosen(sorted(usual) or _BY_COUNT)

    def _positions(
        self,
        memory: Memory,
        shapes: Mapping[str, tuple[int, ...]],
        ways: Mapping[str, Integers],
        seed: int,
        trial: int,
    ) -> dict[str, Integers]:
        """Which places of each tensor are hit, counted element by element and way by way; ascending."""
        sizes = {name: prod(shape) * len(ways[name]) for name, shape in shapes.items()}
        if self.rate is not None:
            rate = float(self.rate)
            return {name: draw_positions(stream(seed, trial, name), size, rate) for name, size in sizes.items()}
        if self.places is not None:
            return positions_of(self.places, memory, shapes, ways, of_word=self.effect.of_word)
        assert self.count is not None
        total, order = sum(sizes.values()), sorted(sizes)
        if self.count > total:
            raise FaultError(
                f"a count of {self.count} is more than the {total} places in the {len(sizes)} targeted tensors"
            )
        drawn = draw_count(stream(seed, trial, "count over all tensors"), total, self.count)
        # Sorted by name, since variants of a model register their tensors in different orders.
        ends = np.cumsum([sizes[name] for name in order])
        parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        return {name: part - (end - sizes[name]) for name, part, end in zip(order, parts, ends, strict=True)}


def _frozen(values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, set | frozenset):  # in an order that is the same in every process
        values = sorted(values, key=str)
    return tuple(_frozen(each) if isinstance(each, list | tuple) else each for each in values)


def _raw_words(seed: int, trial: int, name: str, count: int) -> NDArray[np.uint64]:
    return stream(seed, trial, f"{name}/words").random_raw(count)


def _shapes(cells: Sequence[Cell], stored: Format, inferences: int | None) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for cell in cells:
        misfit = cell.misfit(stored)
        if misfit is not None:
            raise FaultError(f"tensor {cell.name!r} {misfit}")
        if inferences is not None and inferences < 1:
            raise FaultError(f"a list is for one inference or more; got inferences={inferences}")
        if inferences is not None and not isinstance(cell, ActivationCell):
            raise FaultError(f"tensor {cell.name!r} is no activation: its faults stay for every inference")
        if inferences is not None and isinstance(cell, ActivationCell) and cell.node.permanent:
            raise FaultError(f"activation {cell.name!r}: its faults are permanent: the same for every inference")
        shapes[cell.name] = cell.shape if inferences is None else (index(inferences), *cell.shape[1:])
    return shapes
