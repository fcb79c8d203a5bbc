"""What was asked of a campaign, checked, and turned into the job and the settings that its store keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor, nn

from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.job import Job
from fitact_fx.campaigns.kinds import Kind
from fitact_fx.campaigns.lanes import StopRule
from fitact_fx.campaigns.questions import Cell, Question
from fitact_fx.campaigns.rows import Condition
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Metric
from fitact_fx.campaigns.variants import Injection, described, prepared
from fitact_fx.errors import CampaignError
from fitact_fx.faults import FaultModel, Format, Memory
from fitact_fx.faults.activation_cell import ActivationCell

COLUMNS = ("accuracy", "sdc1", "sdc5", "due")


@dataclass(frozen=True, eq=False)
class Setup:
    """The arguments of `run_campaign`, as values."""

    variants: Mapping[str, nn.Module]
    samples: Samples
    kind: Kind
    fault: Callable[..., FaultModel] | FaultModel
    format: Format
    targets: tuple[str, ...] | None
    at: tuple[str, ...] | None
    where: str
    permanent: bool
    trials: int | None
    rule: StopRule
    metrics: Mapping[str, Metric]
    seed: int
    how: How
    threads: int

    def __post_init__(self) -> None:
        if not self.variants:
            raise CampaignError("there are no variants to measure;\n  give {'plain': model, ...}")
        for name in self.variants:
            if not str(name).strip() or not str(name).isprintable():
                raise CampaignError(f"a variant is called {name!r};\n  give each a name that can be printed")
        self._check_numbers()
        self._check_measures()

    def _check_numbers(self) -> None:
        require_whole("threads", self.threads, 1)
        require_whole("minimum", self.rule.minimum, 2)
        require_whole("seed", self.seed, None)
        require_whole("suffix_memory", self.how.suffix_memory, 0)
        if self.trials is not None:
            require_whole("trials", self.trials, 1)
        if self.rule.until is not None and not 0 < self.rule.until < 1:
            problem = f"until is {self.rule.until!r}, and it is the half-width of an interval, as a share"
            raise CampaignError(f"{problem};\n  give 0.01 for +-1 point")
        if not 0 < self.rule.confidence < 1:
            raise CampaignError(f"a confidence lies between 0 and 1; got {self.rule.confidence!r}")

    def _check_measures(self) -> None:
        for name, metric in self.metrics.items():
            if name in COLUMNS or not callable(metric):
                raise CampaignError(f"metric {name!r} is no function of (outputs, targets), or has a column's name")
        if self.rule.measure and self.rule.measure not in (*COLUMNS, *self.metrics):
            raise CampaignError(
                f"there is no {self.rule.measure!r} to measure;\n  choose one of {', '.join((*COLUMNS, *self.metrics))}"
            )

    def planned(self) -> tuple[Job, dict[str, Any], tuple[Condition, ...]]:
        """The job, the settings (without what must be measured), and the conditions."""
        models, cells = self._prepared()
        how = How(self.how.compile, self.how.suffixes, self.how.skip, self.how.suffix_memory // len(models))
        inferences = sum(self.samples.sizes) if self.at is not None and not self.permanent else None
        job = Job(
            models,
            self.samples,
            self.metrics,
            cells,
            self.format,
            self.seed,
            how,
            _weights(models, cells),
            self.threads,
            inferences,
        )
        return job, self._settings(models, cells), tuple(cell.condition for cell in cells)

    def _prepared(self) -> tuple[dict[str, nn.Module], tuple[Cell, ...]]:
        """The variants as they are run, and the cells, whose faults need room in injection nodes."""
        models = self._copies(1)
        cells = self._cells(models)
        if self.at is None:
            return models, cells
        room = max(_room(cell, model, self.format) for cell in cells for model in models.values())
        return (models if room == 1 else self._copies(room)), cells

    def _copies(self, capacity: int) -> dict[str, nn.Module]:
        injection = None if self.at is None else Injection(self.at, self.where, self.permanent, capacity)
        return {
            name: prepared(name, model, self.samples, self.format, injection) for name, model in self.variants.items()
        }

    def _cells(self, models: Mapping[str, nn.Module]) -> tuple[Cell, ...]:
        memories = {name: Memory.of(model) for name, model in models.items()}
        cells = self.kind.cells(Question(self.fault, memories, self.format, self._targets, self.trials))
        for cell in cells:
            for memory in memories.values():
                cell.faults(memory, self.format, self.seed, 0, None)  # what cannot be drawn shows at once
        return cells

    @cached_property
    def _targets(self) -> tuple[str, ...] | None:
        return ("activations",) if self.at is not None and self.targets is None else self.targets

    @cached_property
    def stop_rule(self) -> StopRule:
        """With what it looks at, unless the user said: the accuracy, where there are labels for it."""
        if self.rule.measure:
            return self.rule
        labelled = any(_labels(targets) for targets in self.samples.targets)
        return replace(self.rule, measure="accuracy" if labelled else next(iter(self.metrics), "sdc1"))

    def _settings(self, models: Mapping[str, nn.Module], cells: tuple[Cell, ...]) -> dict[str, Any]:
        fault = cells[0].fault
        labelled = sum(_labels(targets) for targets in self.samples.targets)
        persistence = "memory" if self.at is None else "permanent" if self.permanent else "transient"
        return {
            "kind": self.kind.name,
            "question": repr(self.kind),
            "fault": fault.describe() if isinstance(self.fault, FaultModel) else fault.event,
            "effect": fault.effect.name,
            "format": self.format.name,
            "targets": list(self._targets or (("parameters", "bounds") if fault.rate is not None else ("parameters",))),
            "at": None if self.at is None else list(self.at),
            "where": self.where,
            "persistence": persistence,
            "seed": self.seed,
            "trials": max(cell.condition.trials for cell in cells),
            "until": self.rule.until,
            "minimum": self.rule.minimum,
            "measure": self.stop_rule.measure,
            "confidence": self.rule.confidence,
            "compile": self.how.compile,
            "suffixes": self.how.suffixes,
            "skip": self.how.skip,
            # Where the network is compiled, what is kept decides what is re-run, and eager code rounds differently.
            "suffix_memory": self.how.suffix_memory if self.how.compile else None,
            "threads": self.threads,
            "metrics": list(self.metrics),
            "batches": list(self.samples.sizes),
            "samples": sum(self.samples.sizes),
            "labelled": labelled,
            "data": self.samples.fingerprint,
            "population_bits": max(cell.condition.population for cell in cells),
            "variants": {name: described(self.variants[name], model) for name, model in models.items()},
        }


def _labels(targets: Any) -> int:
    """How many samples have labels."""
    return len(targets) if isinstance(targets, Tensor) and targets.ndim and not targets.is_floating_point() else 0


def require_whole(name: str, value: object, least: int | None) -> None:
    """CampaignError unless it is a whole number, from `least` up if that is not None."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise CampaignError(f"{name} is a whole number{'' if least is None else f' from {least} up'}; got {value!r}")


def _room(cell: Cell, model: nn.Module, stored: Format) -> int:
    """How many elements of one activation a trial of this cell can hit."""
    return max(
        cell.fault.room(each.name, prod(each.shape[1:] if each.node.permanent else each.shape), stored)
        for each in Memory.of(model).cells
        if isinstance(each, ActivationCell)
    )


def _weights(models: Mapping[str, nn.Module], cells: tuple[Cell, ...]) -> dict[str, float]:
    """Tensor name -> about how many trials hit it: what the clean values that are kept are chosen by."""
    weights: dict[str, float] = {}
    for model in models.values():
        for place in Memory.of(model).cells:
            weights[place.name] = float(max(1, prod(place.shape)))
    named: dict[str, float] = {}
    for cell in cells:
        if cell.condition.tensor is not None:
            named[cell.condition.tensor] = named.get(cell.condition.tensor, 0.0) + cell.condition.trials
    return {name: named.get(name, 0.0) for name in weights} if named else weights
