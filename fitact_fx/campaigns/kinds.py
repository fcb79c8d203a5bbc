"""What a campaign asks: at which rates, or where a single fault hurts. Each kind says which cells it has.

A cell is one condition with its trials: trial i of a cell has the same faults for every variant.
"""

import glob
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import CampaignError, close_to, known
from fitact_fx.faults import FaultList, FaultModel, Format, Memory
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.cells import Cell as Place
from fitact_fx.faults.drawing import permuted
from fitact_fx.injected import NodeName
from fitact_fx.statistics import sample_size

MakeFault = Callable[..., FaultModel]
STRATA = ("network", "tensor", "bit", "site")


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
        place = self._place(stored, seed, trial)
        fault = replace(self.fault, rate=None, count=None, places=(place,))
        return fault.draw(memory, stored, seed, trial)

    def _place(self, stored: Format, seed: int, trial: int) -> tuple[str, int] | tuple[str, int, int]:
        bit = self.condition.bit
        ways = self.fault.ways(stored) if bit is None else (bit,)
        position, total = trial, sum(elements for _, elements in self.sizes) * len(ways)
        if not 0 <= trial < total:  # no cell has more trials than places
            raise ValueError(f"trial {trial} is none of {total} places")
        if self.shuffled:
            position = permuted(seed, self.condition.name, total, trial)
        tensors = iter(self.sizes)
        tensor, elements = next(tensors)
        while position >= elements * len(ways):
            position -= elements * len(ways)
            tensor, elements = next(tensors)
        element, way = divmod(position, len(ways))
        return (tensor, element) if self.fault.effect.of_word else (tensor, element, ways[way])


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


class Kind(ABC):
    """A frozen value; `cells` says what is measured."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In words: "rate sweep"."""

    @abstractmethod
    def cells(self, question: Question) -> tuple[Cell, ...]:
        """The conditions in the order of the report. CampaignError for a question without an answer."""


@dataclass(frozen=True)
class RateSweep(Kind):
    """Accuracy against bit error rate: `trials` draws (100 unless said) at each of `rates`, each in [0, 1]."""

    rates: tuple[float, ...]
    name = "rate sweep"

    def __post_init__(self) -> None:
        try:
            rates = tuple(float(rate) for rate in self.rates)
        except (TypeError, ValueError) as error:
            raise CampaignError(f"rates are numbers, such as [1e-6, 1e-5]; got {self.rates!r}") from error
        object.__setattr__(self, "rates", rates)
        if not rates or len(set(rates)) < len(rates):
            raise CampaignError(f"a rate sweep needs at least one rate, each once; got {list(rates)}")

    def cells(self, question: Question) -> tuple[Cell, ...]:
        trials = 100 if question.trials is None else question.trials
        made = [(rate, question.made(rate=rate)) for rate in self.rates]
        population = max(self._population(fault, question) for _, fault in made)
        return tuple(
            Cell(Condition(_written(rate), trials, population, rate=rate), fault, question.targets)
            for rate, fault in made
        )

    @staticmethod
    def _population(fault: FaultModel, question: Question) -> int:
        ways = len(fault.ways(question.format))
        return max(
            sum(_places(cell, ways) for cell in fault.cells(memory, question.targets))
            for memory in question.memories.values()
        )


@dataclass(frozen=True)
class SingleFaults(Kind):
    """A statistical campaign: one fault per trial, drawn from all places of each stratum.

    `per`: "network" (one stratum), "tensor", "bit" (of the format) or "site" (of activations; needs `at`). Without
    `trials`, each stratum gets the sample that its own claim needs (Leveugle et al., DATE 2009): a share known to
    +-`margin` at `confidence`, whatever it is; `share` is what it is expected to be, 0.5 the worst case. No place is
    hit twice, as that formula assumes, but for transient faults in activations, which are drawn anew for each trial.
    """

    per: str = "network"
    margin: float = 0.01
    confidence: float = 0.95
    share: float = 0.5
    name = "single faults"

    def __post_init__(self) -> None:
        if self.per not in STRATA:
            raise CampaignError(known("stratum", self.per, STRATA))

    def cells(self, question: Question) -> tuple[Cell, ...]:
        fault = question.made(count=1)
        ways = fault.ways(question.format)
        targets = question.targets or ("parameters",)
        places = tuple(place for place in question.shared(targets) if _places(place, 1))
        if not places:
            raise CampaignError(
                "what is targeted has no elements, so there is no place for a fault;\n  choose other targets"
            )
        if self.per == "bit":
            return self._per_bit(question, targets, places, fault)
        if self.per == "network":
            population = sum(_places(place, len(ways)) for place in places)
            return (_distinct(self._condition("all", population, question), fault, targets, places),)
        if self.per == "site" and not all(isinstance(place, ActivationCell) for place in places):
            raise CampaignError('sites are hit at injection nodes;\n  add at="*" (globs over the names of sites)')
        return tuple(self._of(place, question, fault, len(ways)) for place in places)

    def _per_bit(
        self, question: Question, targets: tuple[str, ...], places: Sequence[Place], fault: FaultModel
    ) -> tuple[Cell, ...]:
        population = sum(_places(place, 1) for place in places)
        if fault.effect.of_word:
            raise CampaignError("the fault hits whole words, so there is no stratum per bit;\n  choose another stratum")
        return tuple(
            _distinct(
                self._condition(f"bit {bit}", population, question, bit=bit),
                question.made(count=1, bits=bit) if _is_transient(places) else fault,
                targets,
                places,
            )
            for bit in fault.ways(question.format)
        )

    def _of(self, place: Place, question: Question, fault: FaultModel, ways: int) -> Cell:
        name, about = place.name, {"tensor": place.name}
        node = NodeName.parse(place.name)
        if node is not None:
            name = about["site"] = node.point
        target = f"{place.kind}:{glob.escape(place.name)}"
        return _distinct(self._condition(name, _places(place, ways), question, **about), fault, (target,), (place,))

    def _condition(self, name: str, population: int, question: Question, **about: object) -> Condition:
        trials = question.trials
        if trials is None:
            trials = sample_size(population, self.margin, self.confidence, self.share)
        return Condition(name, trials, population, **about)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Exhaustive(Kind):
    """Every place there is, once: each element of the targeted tensors, in each of the chosen bits.

    `bits` are bit numbers or fields of the format ("sign", "exponent"), None for all. One cell per tensor and bit.
    """

    bits: object = None
    name = "exhaustive"

    def cells(self, question: Question) -> tuple[Cell, ...]:
        if question.trials is not None:
            problem = f"an exhaustive campaign has as many trials as there are places, and trials={question.trials}"
            raise CampaignError(f"{problem} was asked for;\n  leave `trials` out, or draw a sample with SingleFaults")
        fault = question.made(count=1) if self.bits is None else question.made(count=1, bits=self.bits)
        found = []
        for place in question.shared(question.targets or ("parameters",)):
            if isinstance(place, ActivationCell):
                raise CampaignError("every place of activations is too much;\n  draw a sample with SingleFaults")
            for bit in (None,) if fault.effect.of_word else fault.ways(question.format):
                name = place.name if bit is None else f"{place.name} bit {bit}"
                elements = prod(place.shape)
                condition = Condition(name, elements, elements, tensor=place.name, bit=bit)
                found.append(Cell(condition, fault, None, ((place.name, elements),)))
        return tuple(cell for cell in found if cell.condition.trials)


@dataclass(frozen=True)
class Draws(Kind):
    """One condition: draws (100 unless said) of a fault model that says itself how often it strikes."""

    fault: FaultModel
    name = "draws"

    def cells(self, question: Question) -> tuple[Cell, ...]:
        ways = len(self.fault.ways(question.format))
        found = [self.fault.cells(memory, question.targets) for memory in question.memories.values()]
        if self.fault.count is not None:
            found = [question.shared(question.targets or ("parameters",))]
        population = max(sum(_places(place, ways) for place in places) for places in found)
        trials = 100 if question.trials is None else question.trials
        condition = Condition("all", trials, population, rate=self.fault.rate)
        return (Cell(condition, self.fault, question.targets),)


KINDS: Mapping[str, type[Kind]] = {"rates": RateSweep, "single": SingleFaults, "exhaustive": Exhaustive}


def find_kind(name: str) -> type[Kind]:
    """The kind of that name on the command line; CampaignError with close names if there is none."""
    if name not in KINDS:
        raise CampaignError(known("kind of campaign", name, KINDS) + close_to(name, KINDS))
    return KINDS[name]


def _written(rate: float) -> str:
    """Short, and another text for another rate."""
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


def _distinct(condition: Condition, fault: FaultModel, targets: tuple[str, ...], places: Sequence[Place]) -> Cell:
    """A cell whose trials are different places of these tensors, in an order that only the seed decides."""
    if _is_transient(places):
        return Cell(condition, fault, targets)
    condition = replace(condition, trials=min(condition.trials, condition.population))
    # Sorted by name: variants register their tensors in different orders.
    sizes = sorted((place.name, _places(place, 1)) for place in places)
    return Cell(condition, fault, targets, tuple(sizes), shuffled=True)


def _is_transient(places: Sequence[Place]) -> bool:
    return any(isinstance(place, ActivationCell) and not place.node.permanent for place in places)


def _places(place: Place, ways: int) -> int:
    """In how many places one fault could strike: of an activation, within one inference."""
    return prod(place.shape[1:] if isinstance(place, ActivationCell) else place.shape) * ways
