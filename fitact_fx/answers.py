"""A network's answers: where its class scores are, which answers count as right, and how many of them are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fitact_fx.errors import CalibrationError

IGNORED = -100
"""The label of what has none, as in torch's cross_entropy."""


@dataclass(frozen=True)
class Tally:
    """How many answers are right, of how many that count."""

    right: int = 0
    count: int = 0

    @classmethod
    def of(cls, scores: Tensor, classes: Tensor) -> "Tally":
        """Of these scores (N, classes, ...) and what is right; none is right where it is NaN or infinite."""
        # argmax takes a NaN for the greatest score, and would be right by accident.
        score, answered = scores.max(1)
        return cls(int(((answered == classes) & score.isfinite()).sum()), int((classes != IGNORED).sum()))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.right + other.right, self.count + other.count)

    @property
    def share(self) -> float:
        """The share of right answers; CalibrationError if there was no sample."""
        if self.count == 0:
            raise CalibrationError(
                "none of the samples that were picked came in this pass over the data;\n"
                "  pass data whose samples are the same in every pass (no random augmentation)"
            )
        return self.right / self.count


def right_classes(
    targets: Tensor | None, scores: Tensor, own: Callable[[], Tensor], number: int | None = None
) -> Tensor:
    """The class that counts as right for each of these scores (N, classes, ...), of shape (N, ...).

    A sample without labels (there are no targets, or all of its own are `IGNORED`) has the clean model's answers, which
    `own` gives for the batch. Where only some are `IGNORED`, these mark places that mean nothing, such as padding:
    they stay so and count nowhere. So every sample counts. `number` is that of the batch, for an error.
    """
    if targets is None:
        return own()
    labels = class_labels(targets, scores, number)
    unlabelled = (labels == IGNORED).reshape(len(labels), -1).all(1)
    if not bool(unlabelled.any()):
        return labels
    return torch.where(unlabelled.reshape(-1, *[1] * (labels.ndim - 1)), own(), labels)


def class_labels(targets: Tensor, scores: Tensor, number: int | None = None) -> Tensor:
    """The targets, on the scores' device, if they are classes for these scores (N, classes, ...).

    CalibrationError unless they are whole numbers of shape (N, ...), each a class or `IGNORED`; `number` is
    that of their batch, for the error.
    """
    where = "" if number is None else f"batch {number}: "
    if not label_each(targets, scores):
        raise CalibrationError(
            f"{where}the labels have shape {tuple(targets.shape)} and type {targets.dtype} for class scores of shape "
            f"{tuple(scores.shape)};\n  give one whole number for each, in shape {_places(scores)}"
        )
    targets = targets.long()  # in eight bits, a class could look like the label of what has none
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= scores.shape[1]))]
    if wrong.numel():
        raise CalibrationError(
            f"{where}label {int(wrong[0])} is none of {scores.shape[1]} classes;\n  {_remedy(scores)}"
        )
    return targets.to(scores.device)


def label_each(targets: Tensor, scores: Tensor) -> bool:
    """Whether there is one whole number for each of these scores (N, classes, ...)."""
    return tuple(targets.shape) == _places(scores) and not targets.is_floating_point()


def _places(scores: Tensor) -> tuple[int, ...]:
    return (scores.shape[0], *scores.shape[2:])


def _remedy(scores: Tensor) -> str:
    if scores.shape[1] == 1:
        return "wrap the model in a module that returns a score for each class, or give the data without labels"
    return "check the labels of the data"


def logits_of(output: object) -> Tensor:
    """The class scores in a model's output, see `scores_in`; CalibrationError if it holds none."""
    scores = scores_in(output)
    if scores is None:
        raise CalibrationError(
            "the model's output holds no class scores of shape (N, classes, ...);\n"
            "  wrap the model in a module that returns them first"
        )
    return scores


def scores_in(output: object) -> Tensor | None:
    """The class scores in a model's output, (N, classes, ...): a tensor, `.logits`, or the first of several."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim > 1 else None
