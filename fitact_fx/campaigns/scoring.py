"""What became of the answers: accuracy, silent corruption (SDC), detected errors (DUE), and the user's own metrics.

A sample is *right* if the network without faults gives it its label; where there are no labels, all count as right.
Among those, SDC-1 is a sample whose answer (the greatest class score) changes, SDC-5 one whose answer is none of the
five greatest without faults. A sample with a NaN or Inf in its output that is not there without faults is a DUE: it can
be noticed, so it is no SDC. So can an output of another shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fitact_fx.ambience import same_chances
from fitact_fx.answers import IGNORED, class_labels, scores_in
from fitact_fx.campaigns.fingerprints import parts
from fitact_fx.campaigns.samples import Samples
from fitact_fx.errors import CalibrationError, CampaignError

Metric = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Scores:
    """The shares of one trial, as in a `Row`."""

    accuracy: float | None
    sdc1: float | None
    sdc5: float | None
    due: float
    metrics: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """Of one batch of class scores: the answer of each sample, and whether it can be trusted."""

    answer: Tensor
    finite: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "Answers":
        """The class with the greatest score."""
        # argmax takes a NaN for the greatest score, and would be right by accident.
        score, answer = logits.max(dim=1)
        return cls(answer, score.isfinite())


@dataclass(frozen=True, eq=False)
class Judged:
    """Class scores without faults: the answers, the five greatest, (N, 5, ...), the labels, and what is right."""

    answers: Answers
    best: Tensor
    labels: Tensor | None
    right: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor | None) -> "Judged":
        """CampaignError for labels that do not fit the class scores."""
        answers = Answers.of(logits)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        if targets is None:
            return cls(answers, best, None, torch.ones_like(answers.finite), tuple(logits.shape))
        try:
            labels = class_labels(targets, logits)
        except CalibrationError as error:
            raise CampaignError(str(error)) from error
        return cls(answers, best, labels, (answers.answer == labels) & answers.finite, tuple(logits.shape))


@dataclass(frozen=True, eq=False)
class Golden:
    """One batch without faults, and what every trial is compared with; `judged` is None if it is no class scores."""

    output: Any
    judged: Judged | None

    @classmethod
    def of(cls, output: Any, targets: Any) -> "Golden":
        """From a clean output. CampaignError for labels that do not fit the class scores."""
        logits = _class_scores(output, targets)
        # One score is no choice between classes; and without labels, three dimensions may be (N, T, classes) as well.
        if logits is None or logits.shape[1] < 2 or (targets is None and logits.ndim == 3):
            return cls(output, None)
        return cls(output, Judged.of(logits, targets))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one sample's class scores; None where the output is something else."""
        return None if self.judged is None else self.judged.shape[1:]


@dataclass(frozen=True, eq=False)
class Scoring:
    """How one variant's outputs are judged: its golden outputs, one per batch, and the metrics."""

    samples: Samples
    golden: tuple[Golden, ...]
    metrics: Mapping[str, Metric]

    @classmethod
    def of(cls, outputs: Sequence[Any], samples: Samples, metrics: Mapping[str, Metric]) -> "Scoring":
        """From the clean outputs of all batches."""
        golden = [Golden.of(output, targets) for output, targets in zip(outputs, samples.targets, strict=True)]
        return cls(samples, tuple(golden), metrics)

    def clean(self) -> Scores:
        """The scores without faults. CampaignError where there is nothing to measure, or a metric gives nothing."""
        scores = self.scores([each.output for each in self.golden])
        if scores.error is not None:
            raise CampaignError(f"{scores.error}, without any fault;\n  mend the metric")
        if scores.accuracy is None and scores.sdc1 is None and not scores.metrics:
            seen = all(golden.judged is not None for golden in self.golden)
            why = (
                "no sample has a label that counts"
                if seen
                else "the model's outputs are no class scores for these targets"
            )
            raise CampaignError(
                f'{why}, so there is no accuracy to measure;\n  give metrics={{"name": function(outputs, targets)}}'
            )
        return scores

    def scores(self, outputs: Sequence[Any]) -> Scores:
        """The scores of these outputs, one per batch."""
        counts = torch.zeros(7, dtype=torch.int64)
        for golden, output, size in zip(self.golden, outputs, self.samples.sizes, strict=True):
            counts += self._counts(golden, output, size)
        labelled, correct, right, sdc1, sdc5, broken, samples = counts.tolist()
        judged = all(golden.judged is not None for golden in self.golden)
        metrics, error = self._measured(outputs)
        return Scores(
            correct / labelled if labelled else None,
            sdc1 / right if right and judged else None,
            sdc5 / right if right and judged else None,
            broken / samples,
            metrics,
            error,
        )

    def _counts(self, golden: Golden, output: Any, size: int) -> Tensor:
        """Of one batch: labelled, correct, right without faults, SDC-1, SDC-5, DUE, and how many samples there are."""
        judged = golden.judged
        if judged is None:
            return torch.tensor([0, 0, 0, 0, 0, int(broken(output, golden.output, size).sum()), size])
        labelled = 0 if judged.labels is None else int((judged.labels != IGNORED).sum())
        right = int(judged.right.sum())
        logits = _class_scores(output, None)
        if logits is None or tuple(logits.shape) != judged.shape:
            return torch.tensor([labelled, 0, right, 0, 0, size, size])
        answers, due = Answers.of(logits), broken(output, golden.output, size)
        silent = judged.right & ~_of_each_answer(due, judged.right)
        wrong = (answers.answer != judged.answers.answer) & silent
        far = (answers.answer.unsqueeze(1) != judged.best).all(1) & silent
        correct = 0 if judged.labels is None else int(((answers.answer == judged.labels) & answers.finite).sum())
        return torch.tensor([labelled, correct, right, int(wrong.sum()), int(far.sum()), int(due.sum()), size])

    def _measured(self, outputs: Sequence[Any]) -> tuple[dict[str, float], str | None]:
        """The user's metrics, and what is wrong with those that raised or gave no number."""
        found: dict[str, float] = {}
        errors: list[str] = []
        for name, metric in self.metrics.items():
            try:
                with same_chances():  # a metric may draw a sample: the same one in every trial, whoever runs it
                    value = float(metric(_joined(outputs), _joined(self.samples.targets)))
            except Exception as error:  # noqa: BLE001  the user's code may raise anything; the campaign goes on
                errors.append(f"metric {name!r} raised {type(error).__name__}: {error}")
            else:
                if isfinite(value):
                    found[name] = value
                else:
                    errors.append(f"metric {name!r} gave {value}")
        return found, "; ".join(errors) or None


def _class_scores(output: Any, targets: Any) -> Tensor | None:
    """The class scores, if that is what the output is and the targets are labels, or missing."""
    if targets is not None and (not isinstance(targets, Tensor) or targets.is_floating_point()):
        return None
    return scores_in(output)


def broken(output: Any, clean: Any, size: int) -> Tensor:
    """Which samples have a NaN or Inf that they have not in `clean`, (size,) on the CPU.

    All of them where it cannot be told whose it is. A list of as many dicts as there are samples, as detectors give,
    is one for each.
    """
    if isinstance(output, list | tuple) and len(output) == size and all(isinstance(each, Mapping) for each in output):
        before = clean if isinstance(clean, list | tuple) and len(clean) == size else [None] * size
        return torch.tensor([bool(broken(*pair, 1).any()) for pair in zip(output, before, strict=True)])
    found = torch.zeros(size, dtype=torch.bool)
    known = {path: leaf for path, leaf in parts(clean) if isinstance(leaf, Tensor)}
    for path, leaf in parts(output):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            found |= _broken_by(leaf, known.get(path), size)
    return found


def _broken_by(leaf: Tensor, clean: Tensor | None, size: int) -> Tensor:
    wrong = ~leaf.isfinite()
    if clean is not None and bool(wrong.any()):
        if clean.shape == leaf.shape:
            wrong &= (leaf != clean) & ~(leaf.isnan() & clean.isnan())
        elif not bool(clean.isfinite().all()):  # which of them are new cannot be told
            wrong = torch.zeros_like(wrong)
    if leaf.ndim and len(leaf) == size:
        return wrong.reshape(size, leaf.numel() // size).any(1).cpu()
    return wrong.any().cpu().expand(size)


def _of_each_answer(due: Tensor, answers: Tensor) -> Tensor:
    """What is said of the samples, (N,), for their answers, (N, ...); of any if there are not N, whose is not known."""
    if len(answers) != len(due):
        due = due.any().expand(len(answers))
    return due.to(answers.device).reshape(-1, *(1,) * (answers.ndim - 1))


def _joined(values: Sequence[Any]) -> Any:
    """One tensor of all samples, where each batch has one; else the list."""
    if all(isinstance(value, Tensor) and value.ndim for value in values):
        return torch.cat(list(values))
    return list(values)
