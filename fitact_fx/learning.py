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
- Part of the data is held out, and bounds that cost more there than allowed are drawn back towards the
  calibrated ones until they do not. That is counted in clean accuracy and in distortion of the outputs,
  which is the same on images that the network has seen and on new ones.
"""

import warnings
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from fitact_fx.answers import logits_of
from fitact_fx.bounded import exchanged
from fitact_fx.clean_accuracy import Costs, check_max_drop, costs_of, too_costly, within
from fitact_fx.clean_outputs import clean_scores
from fitact_fx.confined import only_bounds_change
from fitact_fx.descent import Step, check_learning, descend
from fitact_fx.errors import CostlyWarning
from fitact_fx.faults import BitFlip, find_format
from fitact_fx.holdout import Holdout
from fitact_fx.losses import distortion, label_loss, require_targets, share_moved
from fitact_fx.new_samples import warn_of_new_samples
from fitact_fx.options import SHARE, Span, check_flags, check_numbers
from fitact_fx.policies import Smooth
from fitact_fx.sides import Side, mean_of, put_all, sides_to_learn
from fitact_fx.source import level_of_user

_BISECTIONS = 4  # to find how far learned bounds can be followed: to one sixteenth of the way


@dataclass(frozen=True)
class Learning:
    """How bounds are learned.

    `steps` of Adam, over at most `samples` samples each, at `learning_rate` (on the logarithm of the
    bounds, falling along a cosine); the smooth form's slope grows from `slope_start` to `slope_end`;
    `tightening` weighs the mean square of the bounds as shares of the calibrated ones against the loss
    (zeta in the re-implementation); `distillation` weighs how far the outputs are moved from the clean model's, and
    `labels` the cross-entropy where there are labels; `held_out` is the share of the samples that the clean
    accuracy is checked on and nothing is learned from. `distortion` limits how far learned bounds may move the outputs
    on these: the mean square of it, over the variance of the clean ones (see `clean_accuracy.Costs`). Infinity
    is no limit. Calibrated bounds that lie beyond it stay, and nothing that was learned (a CostlyWarning says so).

    With a `fault_rate` above 0, each step is taken under drawn faults as well: the step's own bit flips at that
    rate in the parameters, stored in `fault_format`. What is minimised there is how much probability moves to other
    classes than the clean model's, and its gradient is scaled down to the length of the rest's: through faulted
    weights, gradients reach a million times their clean size.

    `together` moves the neuron bounds of a feature map by a common factor and each by a correction of its own.
    RecipeError for a number that makes no sense, FaultError for an unknown format.
    """

    steps: int = 150
    samples: int = 128
    learning_rate: float = 0.02
    slope_start: float = 20.0
    slope_end: float = 100.0
    tightening: float = 0.1
    distillation: float = 1.0
    labels: float = 0.1
    held_out: float = 0.2
    distortion: float = 0.0082
    fault_rate: float = 0.0
    fault_format: str = "q15.16"
    together: bool = False

    def __post_init__(self) -> None:
        check_learning(self)
        check_numbers(self, SHARE, "fault_rate")
        check_numbers(self, Span(0, with_low=True, with_high=True), "distortion")
        check_flags(self, "together")
        find_format(self.fault_format)


@dataclass(frozen=True)
class Record:
    """What a learning did. Accuracies and drops are shares of the held-out samples, which nothing was learned from.

    Where the calibration saw them, a drop on new samples may be larger: see `new_samples`.
    `distortion` is how far the outputs are moved there, as `Learning` says. `kept` is how far the learned bounds were
    followed from the calibrated ones (1: all the way) for drop and distortion to stay within their limits. At 0 the
    bounds are the calibrated ones: their drop is within its limit, and their distortion may be beyond. Mean bounds are
    means of absolute values over all bounds.
    """

    epochs: float
    steps: int
    losses: tuple[float, ...]
    held_out: int
    clean_accuracy: float
    drop: float
    distortion: float
    kept: float
    mean_bound_before: float
    mean_bound_after: float

    def __str__(self) -> str:
        return (
            f"{self.steps} steps ({self.epochs:.1f} epochs), loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f}, "
            f"followed {100 * self.kept:.0f} % of the way, "
            f"mean bound {self.mean_bound_before:.4f} -> {self.mean_bound_after:.4f}, "
            f"clean drop {100 * self.drop:.2f} points and distortion {self.distortion:.4f} on {self.held_out} held-out "
            "samples"
        )


def learn_bounds(hard: nn.Module, data: object, learning: Learning, max_drop: float, seed: int) -> Record:
    """Learn the bounds of every site whose spec says so; see the head of this file.

    They are followed as far as the drop of clean accuracy stays within `max_drop`, and the distortion within that of
    `learning`; a CostlyWarning where the distortion leaves nothing of what was learned, and where the calibrated bounds
    cost more than `max_drop` on new samples (see `new_samples`). Nothing but bounds changes: no Parameter, gradient,
    mode, BatchNorm statistic or random state. If anything is raised, the bounds are as before.
    Raises CalibrationError for data without enough different samples, for labels with some batches only, and if the
    calibrated bounds themselves already cost more than `max_drop`; RecipeError for a `max_drop` that is no share.
    """
    check_max_drop(max_drop)
    with only_bounds_change(hard, seed):
        sides = sides_to_learn(hard, together=learning.together)
        holdout = Holdout.of(data, learning.held_out)
        require_targets(holdout, learning.distillation)

        def losses(step: Step) -> Generator[Tensor]:
            return _task_losses(hard, step, learning, seed)

        values, seen = descend(sides, holdout.learning_batches(learning.samples), learning, losses)
        costs, kept = _drawn_back(hard, sides, holdout, max_drop, learning.distortion)
        # Asked last, where nothing is left that could stop the learning, and of the bounds that it began with.
        put_all(sides, [side.calibrated for side in sides])
        warn_of_new_samples(hard, holdout, max_drop)
        put_all(sides, [side.at(kept) for side in sides])
    return Record(
        epochs=seen / holdout.learned,
        steps=learning.steps,
        losses=tuple(values),
        held_out=holdout.held_out,
        clean_accuracy=costs.clean_accuracy,
        drop=costs.drop,
        distortion=costs.distortion,
        kept=kept,
        mean_bound_before=mean_of([side.calibrated for side in sides]),
        mean_bound_after=mean_of([side.at(kept) for side in sides]),
    )


def _task_losses(hard: nn.Module, step: Step, learning: Learning, seed: int) -> Generator[Tensor]:
    clean = clean_scores(hard, step.batch)
    with exchanged(hard, Smooth(step.slope)):
        scores = logits_of(step.batch.run(hard))
    yield learning.distillation * distortion(scores, clean) + learning.labels * label_loss(scores, step.batch)
    if learning.fault_rate > 0:
        flips = BitFlip(rate=learning.fault_rate)
        faults = flips.draw(hard, learning.fault_format, seed, step.number, ["parameters"])
        with exchanged(hard, Smooth(step.slope)), faults.applied(hard):
            yield share_moved(logits_of(step.batch.run(hard)), clean)


def _drawn_back(
    hard: nn.Module, sides: list[Side], holdout: Holdout, max_drop: float, limit: float
) -> tuple[Costs, float]:
    """Leave the bounds farthest along that keep both limits: what they cost, and the share of the way."""

    @cache
    def costs(share: float) -> Costs:
        put_all(sides, [side.at(share) for side in sides])
        return costs_of(hard, holdout.held_out_batches())

    def allowed(share: float) -> bool:
        return within(costs(share).drop, max_drop) and costs(share).distortion <= limit

    if allowed(1.0):
        return costs(1.0), 1.0
    if not within(drop := costs(0.0).drop, max_drop):
        raise too_costly(drop, max_drop, holdout)
    kept, beyond = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (kept + beyond) / 2
        kept, beyond = (middle, beyond) if allowed(middle) else (kept, middle)
    put_all(sides, [side.at(kept) for side in sides])
    if kept == 0 and costs(1.0) != costs(0.0) and within(costs(beyond).drop, max_drop):
        _warn_of_nothing_kept(costs(0.0), costs(beyond), beyond, limit)
    return costs(kept), kept


def _warn_of_nothing_kept(calibrated: Costs, least: Costs, share: float, limit: float) -> None:
    warnings.warn(
        f"nothing that was learned is kept: {100 * share:.0f} % of the way, bounds move the outputs on "
        f"{least.samples} held-out samples by {least.distortion:.4f} (the calibrated ones by "
        f"{calibrated.distortion:.4f}), more than Learning(distortion={limit:g}) allows;\n"
        "  calibrate with more data, or allow more of it (infinity is no limit)",
        CostlyWarning,
        stacklevel=level_of_user(),
    )
