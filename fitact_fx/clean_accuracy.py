"""What bounds cost while nothing is faulty, on samples that nothing was learned from: accuracy, and moved outputs."""

from functools import partial

import torch
from torch import Tensor, nn

from fitact_fx.answers import Tally, logits_of, right_classes
from fitact_fx.batches import Batch
from fitact_fx.bounded import exchanged
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.holdout import Holdout
from fitact_fx.options import SHARE
from fitact_fx.policies import Pass


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
    with exchanged(hard, Pass()):
        return logits_of(batch.run(hard)).argmax(1)


def distortion_of(hard: nn.Module, holdout: Holdout) -> float:
    """How far the bounds move the held-out samples' outputs: the mean square, over the variance without bounds."""
    moved = total = squares = 0.0
    count = 0
    with torch.no_grad():
        for batch in holdout.held_out_batches():
            scores = logits_of(batch.run(hard)).double()
            with exchanged(hard, Pass()):
                clean = logits_of(batch.run(hard)).double()
            moved += float((scores - clean).square().sum())
            total += float(clean.sum())
            squares += float(clean.square().sum())
            count += clean.numel()
    variance = squares / max(1, count) - (total / max(1, count)) ** 2
    return moved / max(1, count) / max(variance, 1e-12)


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
