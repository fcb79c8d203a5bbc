"""Learn the bounds of a hardened model with everything else frozen.

After FitAct (DATE 2022): every bound becomes trainable in the smooth FitReLU, and a loss that holds
the network to its task is balanced by a regulariser that tightens the bounds. Afterwards the hard
policy stands at the learned bounds. What we do otherwise than the public re-implementation, and why,
was measured on ResNet-20 and AlexNet (tools/results/learning.md):

- A bound is `calibrated * exp(theta)`: one learning rate then fits a layer that peaks at 1 and one
  that peaks at 20, and the regulariser counts shares of the calibrated bound.
- The slope of the smooth form is relative to the bound and is raised while learning, so that what is
  learned is what the hard threshold will do.
- The clean model's outputs are always a target, and labels, where there are any, an additional one:
  a network that has seen its training images is right about them whatever the bounds do to it.
- Part of the data is held out, and bounds that cost more clean accuracy there than allowed are drawn
  back towards the calibrated ones until they do not.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.ambience import random_states_kept
from fitact_fx.batches import IGNORED, Batch, class_labels, logits_of
from fitact_fx.bounded import SIDES, Bounded, bounded_sites, exchanged
from fitact_fx.clean_accuracy import accuracy_of, too_costly
from fitact_fx.errors import CalibrationError
from fitact_fx.holdout import Holdout
from fitact_fx.policies import Pass, Smooth
from fitact_fx.ranges import evaluating

_BISECTIONS = 3  # to find how far learned bounds can be followed: to one eighth of the way


@dataclass(frozen=True)
class Learning:
    """How bounds are learned.

    `steps` of Adam, over at most `samples` samples each, at `learning_rate` (on the logarithm of the
    bounds, falling along a cosine); the smooth form's slope grows from `slope_start` to `slope_end`;
    `tightening` weighs the mean square of the bounds as shares of the calibrated ones against the loss
    (zeta in the re-implementation); `labels` weighs the cross-entropy where there are labels; `held_out`
    is the share of the samples that the clean accuracy is checked on and nothing is learned from.
    """

    steps: int = 150
    samples: int = 128
    learning_rate: float = 0.02
    slope_start: float = 20.0
    slope_end: float = 100.0
    tightening: float = 0.1
    labels: float = 0.1
    held_out: float = 0.2


@dataclass(frozen=True)
class Record:
    """What a learning did. Accuracies and drops are shares of the held-out samples.

    `kept` is how far the learned bounds were followed from the calibrated ones (1: all the way) for
    the drop to stay within the limit; mean bounds are means of absolute values over all bounds.
    """

    epochs: float
    steps: int
    losses: tuple[float, ...]
    held_out: int
    clean_accuracy: float
    drop: float
    kept: float
    mean_bound_before: float
    mean_bound_after: float

    def __str__(self) -> str:
        return (
            f"{self.steps} steps ({self.epochs:.1f} epochs), loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f}, "
            f"mean bound {self.mean_bound_before:.4f} -> {self.mean_bound_after:.4f}, "
            f"clean drop {100 * self.drop:.2f} points on {self.held_out} held-out samples"
        )


def learn_bounds(hard: nn.Module, data: object, learning: Learning, max_drop: float, seed: int) -> Record:
    """Learn the bounds of every site whose spec says so; see the head of this file.

    Nothing but bounds changes: no Parameter, gradient, mode, BatchNorm statistic or random state. If
    anything is raised, the bounds are as before. Raises CalibrationError for data without enough
    different samples, and if the calibrated bounds themselves already cost more than `max_drop`.
    """
    learned = [
        _Side(site, name, bound)
        for site in bounded_sites(hard).values()
        for name in SIDES
        if site.spec.learned and (bound := getattr(site, name)) is not None
    ]
    if not any(side.movable.any() for side in learned):
        raise CalibrationError("no site of this model has a finite bound to learn;\n  calibrate it first")
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stack.enter_context(evaluating(hard))
        stack.enter_context(_restored_on_error(learned))
        torch.manual_seed(seed)
        holdout = Holdout.of(data, learning.held_out)
        losses, seen = _descend(hard, learned, holdout, learning)
        clean, drop, kept = _drawn_back(hard, learned, holdout, max_drop)
    return Record(
        epochs=seen / holdout.learned,
        steps=learning.steps,
        losses=tuple(losses),
        held_out=holdout.held_out,
        clean_accuracy=clean,
        drop=drop,
        kept=kept,
        mean_bound_before=_mean([side.calibrated for side in learned]),
        mean_bound_after=_mean([side.at(kept) for side in learned]),
    )


class _Side:
    """One side of one site: its calibrated bounds and how far, in logarithms, they have been moved."""

    def __init__(self, site: Bounded, name: str, calibrated: Tensor) -> None:
        self.site, self.name, self.calibrated = site, name, calibrated
        self.theta = torch.zeros_like(calibrated, requires_grad=True)
        # Only a bound on its own side of 0 gets tighter by shrinking; infinity and 0 stay what they are.
        outward = calibrated > 0 if name == "upper" else calibrated < 0
        self.movable = outward & calibrated.isfinite()
        # Where both bounds lie on one side of 0, the outer one stops at the inner one.
        self.other: Tensor | None = site.lower if name == "upper" else site.upper

    def at(self, share: float = 1.0) -> Tensor:
        """The bounds, `share` of the way from the calibrated to the learned ones."""
        moved = self.calibrated.where(self.movable, 0.0) * torch.exp(share * self.theta)
        bound = torch.where(self.movable, moved, self.calibrated)
        if self.other is None:
            return bound
        return torch.maximum(bound, self.other) if self.name == "upper" else torch.minimum(bound, self.other)

    def put(self, bound: Tensor) -> None:
        """Let the site use this bound; unlike Bounded.set_bounds, keep its gradient."""
        setattr(self.site, self.name, bound)

    def tightness(self) -> Tensor:
        """The mean square of the bounds as shares of the calibrated ones."""
        squares = torch.exp(2 * self.theta) * self.movable
        return squares.sum() / self.movable.sum().clamp(min=1)


def _descend(hard: nn.Module, sides: list[_Side], holdout: Holdout, learning: Learning) -> tuple[list[float], int]:
    """Learn; the loss of each step, and how many samples were seen."""
    thetas = [side.theta for side in sides]
    adam = torch.optim.Adam(thetas, lr=learning.learning_rate, betas=(0.9, 0.99))
    losses: list[float] = []
    seen = 0
    steps = tqdm(range(learning.steps), "learning bounds", unit="step", delay=2, disable=None, leave=False)
    for step, batch in zip(steps, holdout.learning_batches(learning.samples), strict=False):
        progress = step / max(1, learning.steps - 1)
        adam.param_groups[0]["lr"] = learning.learning_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))
        slope = learning.slope_start * (learning.slope_end / learning.slope_start) ** progress
        for side in sides:
            side.put(side.at())
        loss = _task_loss(hard, batch, slope, learning)
        loss = loss + learning.tightening * torch.stack([side.tightness() for side in sides]).mean()
        # Gradients of the bounds alone: the Parameters belong to the user, and so do their .grad.
        for theta, gradient in zip(thetas, torch.autograd.grad(loss, thetas), strict=True):
            theta.grad = gradient
        adam.step()
        with torch.no_grad():
            for theta in thetas:  # a bound above all that was seen would protect less and keep no clean value
                theta.clamp_(max=0.0)
        losses.append(float(loss.detach()))
        seen += batch.size
    for side in sides:
        side.theta.requires_grad_(False)
    return losses, seen


def _task_loss(hard: nn.Module, batch: Batch, slope: float, learning: Learning) -> Tensor:
    with torch.no_grad(), exchanged(hard, Pass()):
        clean = logits_of(batch.run(hard))
    with exchanged(hard, Smooth(slope)):
        logits = logits_of(batch.run(hard))
    # Measured against the spread of the clean outputs, so that it weighs the same for every network.
    loss = F.mse_loss(logits, clean) / clean.var().clamp(min=1e-12)
    if batch.targets is not None:
        labels = class_labels(batch.targets, logits)
        if bool((labels != IGNORED).any()):  # the mean over none is NaN
            loss = loss + learning.labels * F.cross_entropy(logits, labels, ignore_index=IGNORED)
    if not loss.isfinite():
        raise CalibrationError("the loss is not finite;\n  check the model's clean outputs and the labels of the data")
    return loss


def _drawn_back(hard: nn.Module, sides: list[_Side], holdout: Holdout, max_drop: float) -> tuple[float, float, float]:
    """Leave the model with the bounds farthest along that keep the limit: (clean accuracy, drop, share)."""
    limit = max_drop + 1e-9  # 198/200 - 197/200 is a little more than 0.005
    with exchanged(hard, Pass()):
        clean = accuracy_of(hard, holdout)

    def drop_at(share: float) -> float:
        _put_all(sides, [side.at(share) for side in sides])
        return clean - accuracy_of(hard, holdout)

    if (drop := drop_at(1.0)) <= limit:
        return clean, drop, 1.0
    if (drop := drop_at(0.0)) > limit:
        raise too_costly(drop, max_drop, holdout)
    kept, beyond = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (kept + beyond) / 2
        kept, beyond = (middle, beyond) if drop_at(middle) <= limit else (kept, middle)
    return clean, drop_at(kept), kept


def _put_all(sides: list[_Side], bounds: list[Tensor]) -> None:
    """Set the bounds for good, and each site's scale with them."""
    for side, bound in zip(sides, bounds, strict=True):
        side.put(bound.detach())
    for side in sides:
        side.site.rescale()


@contextmanager
def _restored_on_error(sides: list[_Side]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _put_all(sides, [side.calibrated for side in sides])
        raise


def _mean(bounds: list[Any]) -> float:
    finite = torch.cat([bound.detach().abs().flatten().float() for bound in bounds])
    return float(finite[finite.isfinite()].mean())
