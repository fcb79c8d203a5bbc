"""What was asked of a campaign, checked, and turned into the job and the settings that its store keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor, nn

from fitact_fx.answers import IGNORED
from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.fingerprints import code_of_function
from fitact_fx.campaigns.job import Job
from fitact_fx.campaigns.kinds import Kind
from fitact_fx.campaigns.questions import Cell, Question
from fitact_fx.campaigns.rows import Condition
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Metric
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.campaigns.variants import Injection, described, prepared, require_same_outputs
from fitact_fx.faults import FaultModel, Format, Memory
from fitact_fx.faults.activation_cell import ActivationCell


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

    def planned(self) -> tuple[Job, dict[str, Any], tuple[Condition, ...]]:
        """The job, the settings (without what must be measured), and the conditions."""
        models, cells = self._prepared()
        how = How(self.how.compile, self.how.suffixes, self.how.skip, self.how.suffix_memory // len(models))
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
            self._inferences,
        )
        return job, self._settings(models, cells), tuple(cell.condition for cell in cells)

    def _prepared(self) -> tuple[dict[str, nn.Module], tuple[Cell, ...]]:
        """The variants as they are run, and the cells, whose faults need room in injection nodes."""
        models = self._copies(1)
        require_same_outputs(models, self.samples)
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
                cell.faults(memory, self.format, self.seed, 0, self._inferences)  # what cannot be drawn shows at once
        return cells

    @property
    def _inferences(self) -> int | None:
        """How many samples a list is for, where each has faults of its own."""
        return sum(self.samples.sizes) if self.at is not None and not self.permanent else None

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
            "metric_code": {name: code_of_function(metric) for name, metric in self.metrics.items()},
            "batches": list(self.samples.sizes),
            "samples": sum(self.samples.sizes),
            "labelled": labelled,
            "data": self.samples.fingerprint,
            "population_bits": max(cell.condition.population for cell in cells),
            "variants": {name: described(self.variants[name], model) for name, model in models.items()},
        }


def _labels(targets: Any) -> int:
    """How many samples have labels that count."""
    if not isinstance(targets, Tensor) or not targets.ndim or targets.is_floating_point():
        return 0
    return int((targets.reshape(len(targets), -1).long() != IGNORED).any(1).sum())


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
