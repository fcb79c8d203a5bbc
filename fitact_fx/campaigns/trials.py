"""Accuracy under faults of several variants of one model, every variant on the same faults.

The unit is the draw: one fault list per trial and rate, applied to each variant in turn. A tensor's
faults depend on its name alone, so the parameters that the variants share are hit alike, and what a
variant adds (its bounds) is hit as well. Differences between variants are therefore paired.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.batches import IGNORED, Batch, as_batches, class_labels, logits_of
from fitact_fx.errors import FitactError
from fitact_fx.faults import BitFlip, Memory
from fitact_fx.ranges import evaluating
from fitact_fx.statistics import Interval, bootstrap_mean, paired_difference

_AT_ONCE = 256  # images per batch where the caller made no batches


@dataclass(frozen=True, eq=False)
class Accuracies:
    """What `measure` found, as shares between 0 and 1.

    `clean`: variant -> accuracy without faults. `draws`: (variant, rate) -> accuracy per draw, (trials,),
    draw i of every variant and rate being trial i.
    """

    clean: Mapping[str, float]
    draws: Mapping[tuple[str, float], NDArray[np.float64]]

    @property
    def rates(self) -> tuple[float, ...]:
        """The bit error rates, in the order they were given."""
        return tuple(dict.fromkeys(rate for _, rate in self.draws))

    def interval(self, variant: str, rate: float) -> Interval:
        """The mean over the draws with its 95 % interval."""
        return bootstrap_mean(self.draws[variant, rate])

    def worst(self, variant: str, rate: float) -> float:
        """The accuracy of the draw that hurt most."""
        return float(self.draws[variant, rate].min())

    def difference(self, variant: str, other: str, rate: float) -> Interval:
        """How much better `variant` is than `other` on the same draws, with its 95 % interval."""
        return paired_difference(self.draws[variant, rate], self.draws[other, rate])


def measure(
    variants: Mapping[str, nn.Module],
    test: tuple[Tensor, Tensor] | Iterable[object],
    rates: Sequence[float],
    *,
    trials: int,
    format: str = "q15.16",  # noqa: A002 - the word of the field, and of the public API
    seed: int = 0,
    progress: bool = True,
) -> Accuracies:
    """Accuracy of each variant without faults, and with bit flips at each rate in `trials` draws.

    `test`: (inputs, classes), or labelled batches. Runs in evaluation mode; every tensor and every
    training mode is as before afterwards. Raises FitactError for no variant, rate, trial or label.
    """
    if not variants or not rates or trials < 1:
        raise FitactError(f"nothing to measure: {len(variants)} variants, {len(rates)} rates, {trials} trials")
    batches = _labelled(test)
    memories = {name: Memory.of(model) for name, model in variants.items()}
    clean = {name: accuracy(model, batches) for name, model in variants.items()}
    draws = {(name, float(rate)): np.empty(trials) for name, rate in product(variants, rates)}
    todo = list(product(range(trials), map(float, rates)))
    for trial, rate in tqdm(todo, "injecting faults", unit="draw", disable=None if progress else True):
        for name, model in variants.items():
            faults = BitFlip(rate=rate).draw(memories[name], format, seed, trial)
            with faults.applied(memories[name]):
                # Without a fault there is nothing to find out.
                draws[name, rate][trial] = accuracy(model, batches) if len(faults) else clean[name]
    return Accuracies(clean, draws)


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The share of right answers, in evaluation mode; the model's own modes are restored.

    An answer whose score is NaN or infinite is wrong, whatever its class: argmax takes a NaN for the
    greatest score, and would be right by accident.
    """
    right = total = 0
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            assert batch.targets is not None
            logits = logits_of(batch.run(model))
            labels = class_labels(batch.targets, logits)
            score, answer = logits.max(dim=1)  # NaN, if there is one among the scores
            right += int(((answer == labels) & score.isfinite()).sum())
            total += int((labels != IGNORED).sum())
    if total == 0:
        raise FitactError("no sample has a label that counts, so there is no accuracy to measure")
    return right / total


def _labelled(test: tuple[Tensor, Tensor] | Iterable[object]) -> list[Batch]:
    match test:
        case (Tensor() as inputs, Tensor() as classes):
            test = list(zip(inputs.split(_AT_ONCE), classes.split(_AT_ONCE), strict=True))
    batches = list(as_batches(test))
    if any(batch.targets is None for batch in batches):
        raise FitactError("a batch of the test set has no labels, and accuracy needs them;\n  give (inputs, classes)")
    return batches


__all__ = ["Accuracies", "accuracy", "measure"]
