"""The work of a campaign as one value that can go to another process: blocks of trials in, rows out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

from torch import nn

from fitact_fx.ambience import random_states_kept
from fitact_fx.campaigns.evaluating import Costs, Evaluator, How
from fitact_fx.campaigns.questions import Cell
from fitact_fx.campaigns.rows import Row
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Metric
from fitact_fx.faults import Format, Memory


class Block(NamedTuple):
    """Some trials of one cell, for one variant."""

    cell: int
    variant: str
    trials: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Job:
    """What every process of a campaign knows. A trial's row depends on nothing but this and the trial's number.

    `inferences`: the number of samples, where faults are transient. `costs`: variant -> what was measured when the
    campaign began. Evaluators are made when they are first needed, or once for all in front of a fork.
    """

    variants: Mapping[str, nn.Module]
    samples: Samples
    metrics: Mapping[str, Metric]
    cells: tuple[Cell, ...]
    format: Format
    seed: int
    how: How
    weights: Mapping[str, float]
    threads: int
    inferences: int | None = None
    costs: dict[str, Costs] = field(default_factory=dict)
    _evaluators: dict[str, Evaluator] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What compiled code and kept values are in one process is nothing to send to another."""
        return {name: value for name, value in vars(self).items() if name != "_evaluators"} | {"_evaluators": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def evaluator(self, variant: str) -> Evaluator:
        """That variant's, made once."""
        if variant not in self._evaluators:
            memory = Memory.of(self.variants[variant])
            made = Evaluator.of(
                variant,
                self.variants[variant],
                self.samples,
                self.metrics,
                self.how,
                {name: weight for name, weight in self.weights.items() if name in memory.names},
                self.costs.get(variant),
            )
            self.costs.setdefault(variant, made.costs)
            self._evaluators[variant] = made
        return self._evaluators[variant]

    def run(self, block: Block) -> list[Row]:
        """The rows of these trials, in their order."""
        with random_states_kept():  # a network may draw, and the global generators are the user's
            evaluator, cell = self.evaluator(block.variant), self.cells[block.cell]
            return [self._row(evaluator, cell, block.variant, trial) for trial in block.trials]

    def _row(self, evaluator: Evaluator, cell: Cell, variant: str, trial: int) -> Row:
        start = perf_counter()
        faults = cell.faults(evaluator.memory, self.format, self.seed, trial, self.inferences)
        scores, way = evaluator.trial(faults, transient=self.inferences is not None)
        return Row(
            variant,
            cell.condition.name,
            trial,
            len(faults),
            faults.checksum,
            scores.accuracy,
            scores.sdc1,
            scores.sdc5,
            scores.due,
            dict(scores.metrics),
            way,
            perf_counter() - start,
            scores.error,
        )
