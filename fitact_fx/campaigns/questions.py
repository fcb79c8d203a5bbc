"""A cell of a campaign, whose trials have the same faults for every variant, and what a kind makes cells of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import CampaignError
from fitact_fx.faults import FaultList, FaultModel, Format, Memory
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.cells import Cell as Place
from fitact_fx.faults.drawing import permuted

_SHARED = ("parameters", "activations")

MakeFault = Callable[..., FaultModel]


@dataclass(frozen=True)
class Cell:
    """One condition, and how the faults of its trials are drawn.

    With `sizes`, tensor -> elements, a trial is one place of these tensors, and no place comes twice: in their order,
    or `shuffled` by the seed. Without, each trial is a draw of the fault model.
    """

    condition: Condition
    fault: FaultModel
    targets: tuple[str, ...] | None
    sizes: tuple[tuple[str, int], ...] = ()
    shuffled: bool = False

    def faults(self, memory: Memory, stored: Format, seed: int, trial: int, inferences: int | None) -> FaultList:
        """The fault list of one trial, for this variant's memory."""
        if not self.sizes:
            return self.fault.draw(memory, stored, seed, trial, self.targets, inferences)
        place = self._place(memory, stored, seed, trial)
        fault = replace(self.fault, rate=None, count=None, places=(place,))
        return fault.draw(memory, stored, seed, trial)

    def _place(self, memory: Memory, stored: Format, seed: int, trial: int) -> tuple[str, int] | tuple[str, int, int]:
        sizes = [(name, elements, self._ways(memory, name, stored)) for name, elements in self.sizes]
        position, total = trial, sum(elements * len(ways) for _, elements, ways in sizes)
        if not 0 <= trial < total:  # no cell has more trials than places
            raise ValueError(f"trial {trial} is none of {total} places")
        if self.shuffled:
            position = permuted(seed, self.condition.name, total, trial)
        tensors = iter(sizes)
        tensor, elements, ways = next(tensors)
        while position >= elements * len(ways):
            position -= elements * len(ways)
            tensor, elements, ways = next(tensors)
        element, way = divmod(position, len(ways))
        return (tensor, element) if self.fault.effect.of_word else (tensor, element, ways[way])

    def _ways(self, memory: Memory, tensor: str, stored: Format) -> tuple[int, ...]:
        bit = self.condition.bit
        return self.fault.ways_of(memory.find(tensor), stored) if bit is None else (bit,)


@dataclass(frozen=True)
class Question:
    """What every kind is given: the fault model to be made, what it can hit, and how many trials the user wants.

    `trials` is None where the kind is to plan them itself. The memories are those of the variants, by name.
    """

    fault: MakeFault | FaultModel
    memories: Mapping[str, Memory]
    format: Format
    targets: tuple[str, ...] | None
    trials: int | None

    def made(self, **how: object) -> FaultModel:
        """The fault model, struck this often. CampaignError if it does not take that."""
        if not callable(self.fault):
            raise CampaignError(f"fault is {self.fault!r};\n  give a fault model itself, such as fault=BitFlip")
        try:
            made = self.fault(**how)
        except TypeError as error:
            remedy = "bind what else it needs with functools.partial, such as partial(Burst, width=2)"
            if "argument 'bits'" in str(error):
                remedy = "it hits whole words: choose no bits"
            raise CampaignError(f"fault cannot be made with {how}: {error};\n  {remedy}") from error
        if not isinstance(made, FaultModel):
            raise CampaignError(f"fault makes a {type(made).__name__};\n  give a fault model, such as fault=BitFlip")
        return made

    def population(self, fault: FaultModel, places: Iterable[Place]) -> int:
        """In how many places one fault could strike, over all of these tensors."""
        return sum(places_in(place, len(fault.ways_of(place, self.format))) for place in places)

    def paired(self, fault: FaultModel) -> None:
        """CampaignError unless this fault hits the same parameters and activations in all variants.

        A tensor's faults follow from its name and size; bounds are each variant's own.
        """
        hit = {
            name: {(cell.name, cell.shape) for cell in fault.cells(memory, self.targets) if cell.kind in _SHARED}
            for name, memory in self.memories.items()
        }
        (first, tensors), *others = hit.items()
        for name, theirs in others:
            if tensors != theirs:
                some = min(tensor for tensor, _ in tensors ^ theirs)
                raise CampaignError(
                    f"variants {first!r} and {name!r} differ in what can be hit (tensor {some!r}), so that they would "
                    "get different faults;\n  give variants of one model, or run a campaign for each and compare them"
                )

    def shared(self, targets: Sequence[str]) -> tuple[Place, ...]:
        """What these targets mean, in the first variant's order. CampaignError unless it is the same in all of them."""
        chosen = {name: memory.chosen(targets) for name, memory in self.memories.items()}
        (first, places), *others = chosen.items()
        names = {place.name: place.shape for place in places}
        for name, theirs in others:
            apart = names.items() ^ {place.name: place.shape for place in theirs}.items()
            if apart:
                some = min(tensor for tensor, _ in apart)
                raise CampaignError(
                    f"variants {first!r} and {name!r} differ in what can be hit (tensor {some!r}), so that single "
                    'faults could not be the same in both;\n  choose what they share, such as targets=["parameters"]'
                )
        return places


def distinct_places(condition: Condition, fault: FaultModel, targets: tuple[str, ...], places: Sequence[Place]) -> Cell:
    """A cell whose trials are different places of these tensors, in an order that only the seed decides."""
    if is_transient(places):
        return Cell(condition, fault, targets)
    condition = replace(condition, trials=min(condition.trials, condition.population))
    # Sorted by name: variants register their tensors in different orders.
    sizes = sorted((place.name, places_in(place, 1)) for place in places)
    return Cell(condition, fault, targets, tuple(sizes), shuffled=True)


def is_transient(places: Sequence[Place]) -> bool:
    """Whether a fault there belongs to one sample, so that each trial draws anew."""
    return any(isinstance(place, ActivationCell) and not place.node.permanent for place in places)


def places_in(place: Place, ways: int) -> int:
    """In how many places one fault could strike: of an activation, within one inference."""
    return prod(place.shape[1:] if isinstance(place, ActivationCell) else place.shape) * ways
