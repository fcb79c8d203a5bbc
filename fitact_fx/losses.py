"""What holds a network to its task while its bounds are learned: the clean model's scores, and labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fitact_fx.answers import IGNORED, class_labels
from fitact_fx.batches import Batch
from fitact_fx.errors import CalibrationError
from fitact_fx.holdout import Holdout


def distortion(scores: Tensor, clean: Tensor) -> Tensor:
    """The mean square of what the scores lost, over the variance of all clean ones: as heavy for every network."""
    return F.mse_loss(scores, clean) / clean.var().clamp(min=1e-12)


def divergence(scores: Tensor, clean: Tensor, temperature: float) -> Tensor:
    """Distillation (Hinton, Vinyals, Dean, arXiv 1503.02531): how far the class probabilities lie from the clean ones.

    The Kullback-Leibler divergence at `temperature`, times its square: the cross-entropy with soft targets, less
    what no bound can change.
    """
    target = torch.log_softmax(clean / temperature, 1)
    found = torch.log_softmax(scores / temperature, 1)
    return (target.exp() * (target - found)).sum(1).mean() * temperature**2


def share_moved(scores: Tensor, clean: Tensor) -> Tensor:
    """How much probability lies on other classes than in the clean model, from 0 to 1, whatever the scores hold."""
    scores = scores.nan_to_num(nan=0.0).clamp(-_FAR, _FAR)
    return (torch.softmax(scores, 1) - torch.softmax(clean, 1)).abs().sum(1).mean() / 2


_FAR = 1e4  # of scores, whose exponentials are then 0 or 1, and finite


def label_loss(scores: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy with the batch's labels; 0 where it has none that counts."""
    if batch.targets is None:
        return scores.new_zeros(())
    labels = class_labels(batch.targets, scores, batch.number)
    if not bool((labels != IGNORED).any()):  # the mean over none is NaN
        return scores.new_zeros(())
    return F.cross_entropy(scores, labels, ignore_index=IGNORED)


def require_targets(holdout: Holdout, distillation: float) -> None:
    """CalibrationError for data without labels where nothing but labels is weighed."""
    if distillation == 0 and not holdout.labelled:
        raise CalibrationError(
            "with distillation=0 nothing but labels is learned from, and the data has none;\n"
            "  give batches of (inputs, labels), or leave distillation above 0"
        )
