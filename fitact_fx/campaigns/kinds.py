"""What a campaign asks: at which rates, or where a single fault hurts. Each kind says which cells it has."""

import glob
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fitact_fx.campaigns.questions import Cell, Question, distinct_places, is_transient, places_in
from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import CampaignError, close_to, known
from fitact_fx.faults import FaultModel
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.bits import Bits
from fitact_fx.faults.cells import Cell as Place
from fitact_fx.injected import NodeName
from fitact_fx.statistics import sample_size

STRATA = ("network", "tensor", "bit", "site")


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
        question.paired(made[0][1])
        population = max(self._population(fault, question) for _, fault in made)
        return tuple(
            Cell(Condition(_written(rate), trials, population, rate=rate), fault, question.targets)
            for rate, fault in made
        )

    @staticmethod
    def _population(fault: FaultModel, question: Question) -> int:
        return max(
            question.population(fault, fault.cells(memory, question.targets)) for memory in question.memories.values()
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
        targets = question.targets or ("parameters",)
        places = tuple(place for place in question.shared(targets) if places_in(place, 1))
        if not places:
            raise CampaignError(
                "what is targeted has no elements, so there is no place for a fault;\n  choose other targets"
            )
        if self.per == "bit":
            return self._per_bit(question, targets, places, fault)
        if self.per == "network":
            population = question.population(fault, places)
            return (distinct_places(self._condition("all", population, question), fault, targets, places),)
        if self.per == "site" and not all(isinstance(place, ActivationCell) for place in places):
            raise CampaignError('sites are hit at injection nodes;\n  add at="*" (globs over the names of sites)')
        return tuple(self._of(place, question, fault) for place in places if question.population(fault, (place,)))

    def _per_bit(
        self, question: Question, targets: tuple[str, ...], places: Sequence[Place], fault: FaultModel
    ) -> tuple[Cell, ...]:
        if fault.effect.of_word:
            raise CampaignError("the fault hits whole words, so there is no stratum per bit;\n  choose another stratum")
        # Words of packed bounds have bits of their own: fewer than the others, or more.
        having: dict[int, list[Place]] = {}
        for place in places:
            for bit in fault.ways_of(place, question.format):
                having.setdefault(bit, []).append(place)
        return tuple(
            distinct_places(
                self._condition(f"bit {bit}", sum(places_in(place, 1) for place in having[bit]), question, bit=bit),
                question.made(count=1, bits=bit) if is_transient(places) else fault,
                targets,
                having[bit],
            )
            for bit in sorted(having)
        )

    def _of(self, place: Place, question: Question, fault: FaultModel) -> Cell:
        name, about = place.name, {"tensor": place.name}
        node = NodeName.parse(place.name)
        if node is not None:
            name = about["site"] = node.point
        target = f"{place.kind}:{glob.escape(place.name)}"
        return distinct_places(
            self._condition(name, question.population(fault, (place,)), question, **about), fault, (target,), (place,)
        )

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

    bits: Bits = None
    name = "exhaustive"

    def __post_init__(self) -> None:
        if isinstance(self.bits, Iterable) and not isinstance(self.bits, str):  # a set has no order of its own
            object.__setattr__(self, "bits", tuple(sorted(self.bits, key=str)))

    def cells(self, question: Question) -> tuple[Cell, ...]:
        if question.trials is not None:
            problem = f"an exhaustive campaign has as many trials as there are places, and trials={question.trials}"
            raise CampaignError(f"{problem} was asked for;\n  leave `trials` out, or draw a sample with SingleFaults")
        fault = question.made(count=1) if self.bits is None else question.made(count=1, bits=self.bits)
        found = []
        for place in question.shared(question.targets or ("parameters",)):
            if isinstance(place, ActivationCell):
                raise CampaignError("every place of activations is too much;\n  draw a sample with SingleFaults")
            for bit in (None,) if fault.effect.of_word else fault.ways_of(place, question.format):
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
        found = [self.fault.cells(memory, question.targets) for memory in question.memories.values()]
        if self.fault.count is not None:
            found = [question.shared(question.targets or ("parameters",))]
        question.paired(self.fault)
        population = max(question.population(self.fault, places) for places in found)
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
