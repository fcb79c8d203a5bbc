"""What bounds cost while nothing is faulty, on samples that nothing was learned from: accuracy, and moved outputs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fitact_fx.answers import Tally, logits_of, right_classes
from fitact_fx.batches import Batch
from fitact_fx.clean_outputs import clean_scores
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.holdout import Holdout
from fitact_fx.options import SHARE


@dataclass(frozen=True)
class Costs:
    """What bounds cost on some samples.

    The shares of right answers without and with them, and how far they move the outputs: the mean square of it, over
    the variance that the outputs have without bounds, each class around its own mean. A sample counts 1 at most: what
    is moved so far is lost, and a few whose outputs are a hundred times the others' would speak for all of them.
    """

    clean_accuracy: float
    accuracy: float
    distortion: float
    samples: int

    @property
    def drop(self) -> float:
        """How much accuracy they cost."""
        return self.clean_accuracy - self.accuracy


def costs_of(hard: nn.Module, batches: Iterable[Batch]) -> Costs:
    """What the bounds of `hard` as they stand cost on these samples, in one pass; see `fitact_fx.answers`.

    CalibrationError where there is no sample, and for labels that do not fit.
    """
    clean, bounded, distortion, samples = Tally(), Tally(), _Distortion(), 0
    with torch.no_grad():
        for batch in batches:
            own, scores = clean_scores(hard, batch), logits_of(batch.run(hard))
            classes = right_classes(batch.targets, own, partial(own.argmax, 1), batch.number)
            clean, bounded = clean + Tally.of(own, classes), bounded + Tally.of(scores, classes)
            distortion.take(own, scores)
            samples += batch.size
    return Costs(clean.share, bounded.share, distortion.value, samples)


def accuracy_of(hard: nn.Module, holdout: Holdout) -> float:
    """The share of right answers on the held-out samples; what is right, `fitact_fx.answers` says."""
    tally = Tally()
    with torch.no_grad():
        for batch in holdout.held_out_batches():
            scores = logits_of(batch.run(hard))
            classes = right_classes(batch.targets, scores, partial(_clean_answers, hard, batch), batch.number)
            tally += Tally.of(scores, classes)
    return tally.share


def _clean_answers(hard: nn.Module, batch: Batch) -> Tensor:
    return clean_scores(hard, batch).argmax(1)


class _Distortion:
    """The distortion of scores, (N, classes, ...), that come batch by batch."""

    def __init__(self) -> None:
        self.origin: Tensor | None = None
        self.count = 0
        self.moved: list[Tensor] = []  # of each batch: of each sample, the mean square

    def take(self, clean: Tensor, scores: Tensor) -> None:
        """Count these in."""
        self.moved.append((scores.double() - clean.double()).square().flatten(1).mean(1))
        rows = clean.double().movedim(1, -1).flatten(0, -2)
        if self.origin is None:
            self.origin = rows[0]
            self.total, self.squares = (torch.zeros_like(self.origin) for _ in range(2))
        # From the first one on: beside the square of a score that masks its class, -1e9, all others would be lost.
        apart = rows - self.origin
        self.total += apart.sum(0)
        self.squares += apart.square().sum(0)
        self.count += len(rows)

    @property
    def value(self) -> float:
        """Of all so far. Infinite where outputs moved that are always the same without bounds."""
        variance = (self.squares / self.count - (self.total / self.count).square()).clamp(min=0).mean()
        moved = torch.cat(self.moved)
        if variance == 0:
            return 0.0 if not moved.any() else math.inf
        return float((moved / variance).clamp(max=1).mean())


def check_max_drop(max_drop: object) -> None:
    """RecipeError unless `max_drop` is a share from 0 up to, and without, 1."""
    if SHARE.holds(max_drop):
        return
    raise RecipeError(
        f"max_drop is {max_drop!r};\n"
        "  give a share of the samples, at least 0 and less than 1: 0.005 allows half a point of clean accuracy"
    )


def within(drop: float, max_drop: float) -> bool:
    """Whether this drop is allowed, as the decimals mean it: 198/200 - 197/200 is a little more than 0.005."""
    return drop <= max_drop + 1e-9


def too_costly(drop: float, max_drop: float, holdout: Holdout) -> CalibrationError:
    """What to raise where even the loosest bounds, the calibrated ones, cost more than is allowed."""
    return CalibrationError(
        f"the calibrated bounds themselves cost {100 * drop:.2f} points of clean accuracy on {holdout.held_out} "
        f"held-out samples, more than max_drop allows ({100 * max_drop:.2f});\n"
        "  calibrate with more data, or allow a larger max_drop"
    )
