"""The steps by which bounds are learned: Adam on their logarithms, with a slope that is raised on the way.

What is minimised is the caller's: a generator of losses for each batch. Each is differentiated before the
next is asked for, so that a later one may be taken in another state of the model (with faults in it).
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fitact_fx.batches import Batch
from fitact_fx.errors import CalibrationError
from fitact_fx.options import NOT_NEGATIVE, POSITIVE, Span, check_numbers, check_whole
from fitact_fx.sides import Side


class Pace(Protocol):
    """What a descent has to know; the schemes' own options have these fields."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def slope_start(self) -> float: ...
    @property
    def slope_end(self) -> float: ...
    @property
    def tightening(self) -> float: ...


@dataclass(frozen=True)
class Step:
    """One step of a descent: its number, its batch, and the slope of the smooth form in it."""

    number: int
    batch: Batch
    slope: float


def check_learning(options: object) -> None:
    """RecipeError for a number that makes no sense, in the options that both learning schemes have."""
    check_whole(options, 1, "steps", "samples")
    check_numbers(options, POSITIVE, "learning_rate", "slope_start", "slope_end")
    check_numbers(options, NOT_NEGATIVE, "tightening", "distillation", "labels")
    check_numbers(options, Span(0, 1), "held_out")


Losses = Callable[[Step], Generator[Tensor]]


def descend(
    sides: Sequence[Side], batches: Iterator[Batch], pace: Pace, losses: Losses, title: str = "learning bounds"
) -> tuple[list[float], int]:
    """Move the sides; the loss of each step, and how many samples were seen.

    The first loss is balanced by the tightness of the bounds. No later loss pulls harder than that: its
    gradient is scaled down to the length of the first one's.
    """
    thetas = [theta for side in sides for theta in side.learned]
    for theta in thetas:
        theta.requires_grad_(True)
    adam = torch.optim.Adam(thetas, lr=pace.learning_rate, betas=(0.9, 0.99))
    values: list[float] = []
    seen = 0
    bar = tqdm(range(pace.steps), title, unit="step", delay=2, disable=None, leave=False)
    for number, batch in zip(bar, batches, strict=False):
        progress = number / max(1, pace.steps - 1)
        adam.param_groups[0]["lr"] = pace.learning_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))
        slope = pace.slope_start * (pace.slope_end / pace.slope_start) ** progress
        values.append(_differentiated(sides, thetas, losses(Step(number, batch, slope)), pace.tightening))
        adam.step()
        for side in sides:
            side.hold_inside()
        seen += batch.size
    for theta in thetas:
        theta.requires_grad_(False)
    return values, seen


def _differentiated(sides: Sequence[Side], thetas: list[Tensor], losses: Generator[Tensor], tightening: float) -> float:
    """Leave the gradients in `thetas`; the value of the whole loss."""
    _put(sides)
    total, longest = 0.0, math.inf
    with closing(losses):
        for number, loss in enumerate(losses):
            if not loss.isfinite():
                raise CalibrationError(
                    "the loss is not finite;\n  check the model's clean outputs and the labels of the data"
                )
            if number == 0:
                loss = loss + tightening * torch.stack([side.tightness() for side in sides]).mean()
            # Gradients of the bounds alone: the Parameters belong to the user, and so do their .grad.
            gradients = torch.autograd.grad(loss, thetas)
            length = _length(gradients)
            share = min(1.0, longest / length) if length > 0 else 0.0
            for theta, gradient in zip(thetas, gradients, strict=True):
                theta.grad = gradient if number == 0 or theta.grad is None else theta.grad + share * gradient
            longest = min(longest, length)
            total += float(loss.detach())
            _put(sides)  # for the next loss: the way from `theta` to the bounds was used up
    return total


def _put(sides: Sequence[Side]) -> None:
    for side in sides:
        side.put(side.at())


def _length(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
