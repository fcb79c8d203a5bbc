"""What bounds cost while nothing is faulty: the accuracy on samples that nothing was learned from."""

import torch
from torch import nn

from fitact_fx.batches import IGNORED, class_labels, logits_of, right_answers
from fitact_fx.bounded import exchanged
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.holdout import Holdout
from fitact_fx.options import SHARE
from fitact_fx.policies import Pass


def accuracy_of(hard: nn.Module, holdout: Holdout) -> float:
    """The share of held-out samples whose answer is the label, or the clean model's where there is none."""
    right = count = 0
    with torch.no_grad():
        for batch in holdout.held_out_batches():
            logits, targets = logits_of(batch.run(hard)), batch.targets
            if targets is None:
                with exchanged(hard, Pass()):
                    targets = logits_of(batch.run(hard)).argmax(1)
            targets = class_labels(targets, logits, batch.number)
            right += right_answers(logits, targets)
            count += int((targets != IGNORED).sum())
    if count == 0:
        raise CalibrationError(
            "no held-out sample has a label that counts;\n"
            "  pass data whose samples are the same in every pass (no random augmentation), and label more of them"
        )
    return right / count


def check_max_drop(max_drop: object) -> None:
    """RecipeError unless `max_drop` is a share from 0 up to, and without, 1."""
    if SHARE.holds(max_drop):
        return
    raise RecipeError(
        f"max_drop is {max_drop!r};\n"
        "  give a share of the samples, at least 0 and less than 1: 0.005 allows half a point of clean accuracy"
    )


def too_costly(drop: float, max_drop: float, holdout: Holdout) -> CalibrationError:
    """What to raise where even the loosest bounds, the calibrated ones, cost more than is allowed."""
    return CalibrationError(
        f"the calibrated bounds themselves cost {100 * drop:.2f} points of clean accuracy on {holdout.held_out} "
        f"held-out samples, more than max_drop allows ({100 * max_drop:.2f});\n"
        "  calibrate with more data, or allow a larger max_drop"
    )
