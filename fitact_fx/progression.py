"""Learn bounds from the back: ProAct's way, one site after the other, with everything else frozen.

After the description in the paper's abstract and the authors' public code (reliable-relu-toolbox). From there:
bounds start at the greatest value seen; one site after the other is trained, the last one first, in the smooth
form, with cross-entropy plus distillation from the clean model against a decay of the bounds; after each round
the clean accuracy is checked, and where it has moved by more than the tolerance from what it was before all
training, the round is rolled back and the next one decays less. What we do otherwise:

- Only the site that is trained is smooth. The others are as they will be used, hard: those behind it at their
  learned bounds, those before it at the calibrated ones. The accuracy is that of the hard bounds, too.
- A round is some steps and not an epoch, and there are few of them; the decay counts shares of the calibrated
  bound (see `fitact_fx.sides`), so its weights are no more the code's than the learning rate is.
- The accuracy is checked on samples that nothing is learned from.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.answers import logits_of
from fitact_fx.batches import Batch
from fitact_fx.bounded import Bounded, exchanged
from fitact_fx.clean_accuracy import accuracy_of, check_max_drop, costs_of, too_costly, within
from fitact_fx.clean_outputs import clean_scores
from fitact_fx.confined import only_bounds_change
from fitact_fx.descent import Step, check_learning, descend
from fitact_fx.holdout import Holdout
from fitact_fx.losses import divergence, label_loss, require_targets
from fitact_fx.new_samples import warn_of_new_samples
from fitact_fx.options import POSITIVE, Span, check_numbers, check_whole
from fitact_fx.policies import Smooth
from fitact_fx.sides import Side, mean_of, put_all, sides_to_learn


@dataclass(frozen=True)
class Progressive:
    """How ProAct learns.

    At each site `rounds` rounds of `steps` steps, over at most `samples` samples each. A round that is rolled back
    is followed by one whose `tightening` is `easing` times the last one's. `labels` and `distillation` weigh the
    cross-entropy and the divergence from the clean model at `temperature`; the other options are those of
    `fitact_fx.learning.Learning`. RecipeError for a number that makes no sense.
    """

    rounds: int = 2
    steps: int = 12
    samples: int = 128
    learning_rate: float = 0.03
    slope_start: float = 20.0
    slope_end: float = 100.0
    tightening: float = 0.1
    easing: float = 0.1
    labels: float = 1.0
    distillation: float = 1.0
    temperature: float = 1.0
    held_out: float = 0.2

    def __post_init__(self) -> None:
        check_learning(self)
        check_whole(self, 1, "rounds")
        check_numbers(self, Span(0, 1, with_low=True, with_high=True), "easing")
        check_numbers(self, POSITIVE, "temperature")


@dataclass(frozen=True)
class Stage:
    """What was done at one site. Accuracies are shares of the held-out samples, under hard bounds.

    `tried` is the accuracy after each round, and `held` says which rounds stayed; the others were rolled back.
    """

    site: str
    tried: tuple[float, ...]
    held: tuple[bool, ...]
    accuracy_before: float
    accuracy_after: float
    mean_bound_before: float
    mean_bound_after: float
    steps: int
    seconds: float

    @property
    def rolled_back(self) -> bool:
        """Whether the site was left with the bounds it had."""
        return not any(self.held)


@dataclass(frozen=True)
class Progress:
    """What a ProAct learning did: its stages in the order they were taken, the last site first."""

    stages: tuple[Stage, ...]
    epochs: float
    steps: int
    held_out: int
    clean_accuracy: float
    drop: float
    mean_bound_before: float
    mean_bound_after: float

    def __str__(self) -> str:
        moved = sum(not stage.rolled_back for stage in self.stages)
        return (
            f"{self.steps} steps ({self.epochs:.1f} epochs), {moved} of {len(self.stages)} sites tightened, "
            f"mean bound {self.mean_bound_before:.4f} -> {self.mean_bound_after:.4f}, "
            f"clean drop {100 * self.drop:.2f} points on {self.held_out} held-out samples"
        )


def learn_from_the_back(
    hard: nn.Module, data: object, learning: Progressive, tolerance: float, max_drop: float, seed: int
) -> Progress:
    """Learn the bounds of every site whose spec says so, the last site first; see the head of this file.

    Nothing but bounds changes, and not these if anything is raised. CalibrationError for data without enough
    different samples, and if the calibrated bounds themselves already cost more than `max_drop`; RecipeError for a
    `max_drop` that is no share.
    """
    check_max_drop(max_drop)
    with only_bounds_change(hard, seed):
        sides = sides_to_learn(hard)
        holdout = Holdout.of(data, learning.held_out)
        require_targets(holdout, learning.distillation)
        return _Back(hard, holdout, learning, tolerance, max_drop).learned(sides)


@dataclass
class _Back:
    """The way from the last site to the first: what every stage has to know, and where it stands."""

    hard: nn.Module
    holdout: Holdout
    learning: Progressive
    tolerance: float
    max_drop: float
    seen: int = field(default=0, init=False)

    def learned(self, sides: list[Side]) -> Progress:
        costs = costs_of(self.hard, self.holdout.held_out_batches())
        if not within(costs.drop, self.max_drop):
            raise too_costly(costs.drop, self.max_drop, self.holdout)
        warn_of_new_samples(self.hard, self.holdout, self.max_drop)
        self.clean, self.start, self.now = costs.clean_accuracy, costs.accuracy, costs.accuracy
        batches = self.holdout.learning_batches(self.learning.samples)
        sites = list(dict.fromkeys(side.site for side in sides if side.movable.any()))
        bar = tqdm(
            reversed(sites), "learning from the back", len(sites), unit="site", delay=2, disable=None, leave=False
        )
        stages = tuple(self._stage(site, [side for side in sides if side.site is site], batches) for site in bar)
        return Progress(
            stages=stages,
            epochs=self.seen / self.holdout.learned,
            steps=sum(stage.steps for stage in stages),
            held_out=self.holdout.held_out,
            clean_accuracy=self.clean,
            drop=self.clean - self.now,
            mean_bound_before=mean_of([side.calibrated for side in sides]),
            mean_bound_after=mean_of([side.at() for side in sides]),
        )

    def _stage(self, site: Bounded, sides: list[Side], batches: Iterator[Batch]) -> Stage:
        """Train this site alone."""
        started, before = time.perf_counter(), self.now
        tightening = self.learning.tightening
        tried, held = [], []
        for _ in range(self.learning.rounds):
            tried.append(self._round(site, sides, batches, tightening))
            held.append(self._holds(tried[-1]))
            if held[-1]:
                self.now = tried[-1]
            else:
                tightening *= self.learning.easing
        return Stage(
            site=site.site,
            tried=tuple(tried),
            held=tuple(held),
            accuracy_before=before,
            accuracy_after=self.now,
            mean_bound_before=mean_of([side.calibrated for side in sides]),
            mean_bound_after=mean_of([side.at() for side in sides]),
            steps=self.learning.rounds * self.learning.steps,
            seconds=time.perf_counter() - started,
        )

    def _round(self, site: Bounded, sides: list[Side], batches: Iterator[Batch], tightening: float) -> float:
        """One round, rolled back unless it holds: the clean accuracy it reached."""
        before = [side.own.clone() for side in sides]

        def losses(step: Step) -> Generator[Tensor]:
            clean = clean_scores(self.hard, step.batch)
            with exchanged(site, Smooth(step.slope)):
                scores = logits_of(step.batch.run(self.hard))
            task = self.learning.labels * label_loss(scores, step.batch)
            yield task + self.learning.distillation * divergence(scores, clean, self.learning.temperature)

        pace = replace(self.learning, tightening=tightening)
        self.seen += descend(sides, batches, pace, losses, f"learning {site.site}")[1]
        put_all(sides, [side.at() for side in sides])
        reached = accuracy_of(self.hard, self.holdout)
        if not self._holds(reached):
            for side, own in zip(sides, before, strict=True):
                side.own = own
            put_all(sides, [side.at() for side in sides])
        return reached

    def _holds(self, accuracy: float) -> bool:
        moved, drop = abs(accuracy - self.start), self.clean - accuracy
        return within(moved, self.tolerance) and within(drop, self.max_drop)
