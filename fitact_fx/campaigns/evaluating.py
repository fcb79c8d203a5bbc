"""One variant under faults: the whole network, what depends on the faults, or nothing where none changes anything."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fitact_fx.ambience import slow_path
from fitact_fx.campaigns.fingerprints import identical_trees
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Metric, Scores, Scoring
from fitact_fx.campaigns.suffix.rehearsal import clock
from fitact_fx.campaigns.suffix.suffixes import UNCHANGED, Suffixes
from fitact_fx.errors import CampaignError, FitactError
from fitact_fx.faults import FaultList, Memory
from fitact_fx.traced import TracedModule

Costs = Mapping[str, Any]


@dataclass(frozen=True)
class How:
    """The ways that may be taken: `compile` the network, re-run `suffixes`, `skip` what changes nothing.

    `suffix_memory`: bytes for clean values, of one variant in one process.
    """

    compile: bool = False
    suffixes: bool = True
    skip: bool = True
    suffix_memory: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Runs the trials of one variant. `whole` is the model or its compiled form; each way has its own golden outputs.

    `costs` are measured seconds, JSON values: of a `whole` pass over the data, and of each node of the graph. They
    choose between suffix and compiled whole; those that a store keeps are taken, so that the choice stays the same.
    """

    model: nn.Module
    memory: Memory
    samples: Samples
    whole: Callable[..., Any]
    scoring: Scoring
    clean: Scores
    skip: bool
    suffixes: Suffixes | None
    suffix_scoring: Scoring
    costs: Costs

    @classmethod
    def of(
        cls,
        name: str,
        model: nn.Module,
        samples: Samples,
        metrics: Mapping[str, Metric],
        how: How,
        weights: Mapping[str, float],
        costs: Costs | None = None,
    ) -> "Evaluator":
        """Run the variant without faults, keep what trials need. CampaignError where it cannot be measured."""
        memory = Memory.of(model)
        with _quiet():
            outputs = _clean_outputs(name, model, samples)
            eager = Scoring.of(outputs, samples, metrics)
            seconds = _repeated(name, model, samples, outputs[0])
            whole: Callable[..., Any] = model
            scoring = eager
            if how.compile:
                whole = _compiled(model, samples)
                scoring = Scoring.of([batch.run(whole) for batch in samples.batches], samples, metrics)
                seconds = _timed(whole, samples)
            suffixes = _suffixes(model, samples, how, weights, costs)
        measured = {"whole": seconds, "nodes": {} if suffixes is None else dict(suffixes.costs)}
        return cls(
            model, memory, samples, whole, scoring, scoring.clean(), how.skip, suffixes, eager, dict(costs or measured)
        )

    def clean_values(self) -> dict[str, float | None]:
        """What the variant is worth without faults, by column and metric."""
        return {"accuracy": self.clean.accuracy, "due": self.clean.due, **self.clean.metrics}

    def trial(self, faults: FaultList, *, transient: bool) -> tuple[Scores, str]:
        """The scores of one fault list, and the way they were found (see `rows.WAYS`).

        A network that raises has noticed the fault: all its samples are DUE.
        """
        if self.skip and not len(faults):
            return self.clean, "skipped"
        try:
            with _quiet(compiled=self.whole is not self.model):
                outputs, way = self._transient(faults) if transient else self._lasting(faults)
        except (FitactError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "fail_on_recompile" in str(error):
                raise CampaignError(f"the compiled network had to be compiled again: {error}") from error
            return self._crashed(error), "whole"
        if outputs is None:
            return self.clean, "skipped"
        return (self.suffix_scoring if way == "suffix" else self.scoring).scores(outputs), way

    def _lasting(self, faults: FaultList) -> tuple[list[Any] | None, str]:
        """Outputs with the faults in place for all batches; None if they change nothing."""
        with (applied := faults.applied(self.memory)):
            hit = applied.changed if self.skip else tuple(one.name for one in faults.hits)
            if not hit and self.skip:
                return None, "skipped"
            if not self._is_suffix(hit):
                return [batch.run(self.whole) for batch in self.samples.batches], "whole"
            outputs = [self._suffix(number, hit) for number in range(len(self.samples.batches))]
            if self.skip and all(output is UNCHANGED for output in outputs):
                return None, "skipped"
            return [self._told(number, output) for number, output in enumerate(outputs)], "suffix"

    def _transient(self, faults: FaultList) -> tuple[list[Any] | None, str]:
        """Outputs where each sample has faults of its own: batch by batch, the part of the list that is the batch's."""
        names = {one.name for one in faults.hits}
        is_suffix, start, outputs = self._is_suffix(names), 0, []
        scoring = self.suffix_scoring if is_suffix else self.scoring
        for number, batch in enumerate(self.samples.batches):
            part = faults.inferences(start, start + batch.size)
            start += batch.size
            if self.skip and not len(part):
                outputs.append(scoring.golden[number].output)
                continue
            with part.applied(self.memory):
                hit = tuple(one.name for one in part.hits)
                output = self._suffix(number, hit) if is_suffix else batch.run(self.whole)
            outputs.append(self._told(number, output))
        return outputs, "suffix" if is_suffix else "whole"

    def _suffix(self, number: int, hit: Collection[str]) -> Any:
        assert self.suffixes is not None
        return self.suffixes.outputs(number, hit)

    def _told(self, number: int, output: Any) -> Any:
        return self.suffix_scoring.golden[number].output if output is UNCHANGED else output

    def _is_suffix(self, hit: Collection[str]) -> bool:
        """Whether to re-run only what depends on these: always in eager mode, else where the costs say so."""
        if self.suffixes is None or self.whole is self.model:
            return self.suffixes is not None
        return self.suffixes.seconds(hit) < float(self.costs["whole"])

    def _crashed(self, error: Exception) -> Scores:
        clean = self.clean
        none = None if clean.sdc1 is None else 0.0
        accuracy = None if clean.accuracy is None else 0.0
        return Scores(accuracy, none, none, 1.0, {}, f"the network raised {type(error).__name__}: {error}")


@contextmanager
def _quiet(*, compiled: bool = False) -> Iterator[None]:
    """No gradients, attention as a hardened model computes it, nothing compiled anew."""
    stance = torch.compiler.set_stance("fail_on_recompile") if compiled else nullcontext()
    with torch.inference_mode(), slow_path(), stance:
        yield


def _clean_outputs(name: str, model: nn.Module, samples: Samples) -> list[Any]:
    """One output per batch. CampaignError for a batch that the model does not take."""
    outputs = []
    for number, batch in enumerate(samples.batches):
        try:
            outputs.append(batch.run(model))
        except Exception as error:  # the user's own code may raise anything
            raise CampaignError(
                f"without any fault, variant {name!r} raised {type(error).__name__} on batch {number}: {error};\n"
                "  give data that the model takes"
            ) from error
    return outputs


def _suffixes(
    model: nn.Module, samples: Samples, how: How, weights: Mapping[str, float], costs: Costs | None
) -> Suffixes | None:
    """None where they are turned off, or the model is none that they are sound for."""
    if not how.suffixes or not isinstance(model, GraphModule):
        return None
    known = None if costs is None else costs["nodes"] or None
    try:
        made = Suffixes.of(model, samples.batches, how.suffix_memory, weights, costs=known)
        if how.compile and known is None:
            # What is kept follows from the costs, and decides between suffix and compiled whole: here as in any
            # process that is given these costs.
            made = Suffixes.of(model, samples.batches, how.suffix_memory, weights, costs=made.costs)
    except CampaignError:
        return None
    return made


def _compiled(model: nn.Module, samples: Samples) -> Callable[..., Any]:
    """One compiled form for each size of batch there is, made here and now."""
    unseen = isinstance(model, TracedModule) and bool(model.unseen)
    compiled = torch.compile(model, fullgraph=isinstance(model, GraphModule) and not unseen, dynamic=False)
    for batch in {batch.size: batch for batch in samples.batches}.values():
        batch.run(compiled)
    return compiled


def _repeated(name: str, model: nn.Module, samples: Samples, first: Any) -> float:
    """Seconds of a pass over the data. CampaignError if the model does not give the same output twice."""
    seconds = _timed(model, samples)
    again = samples.batches[0].run(model)
    if not identical_trees(first, again):
        raise CampaignError(
            f"variant {name!r} does not give the same output twice for the same input;\n  make it deterministic: "
            "no random numbers in evaluation mode, torch.use_deterministic_algorithms(True) on a GPU"
        )
    return seconds


def _timed(model: Callable[..., Any], samples: Samples) -> float:
    """Seconds of a pass over the data, from the quicker of two runs of the first batch."""
    batch, runs = samples.batches[0], []
    for _ in range(2):
        start = clock(batch)
        batch.run(model)
        runs.append(clock(batch) - start)
    return min(runs) * sum(samples.sizes) / max(1, batch.size)
