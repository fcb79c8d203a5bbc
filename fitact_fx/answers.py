"""Which answers of a network count as right: the labels, and its own clean answers where a sample has none."""

from collections.abc import Callable

import torch
from torch import Tensor

from fitact_fx.batches import IGNORED, Batch, class_labels


def right_classes(batch: Batch, scores: Tensor, own: Callable[[], Tensor]) -> Tensor:
    """The class that counts as right for each of these scores (N, classes, ...), of shape (N, ...).

    A sample without labels (its batch has none, or all of its own are `IGNORED`) has the clean model's answers, which
    `own` gives for the batch. Where only some are `IGNORED`, these mark places that mean nothing, such as padding:
    they stay so and count nowhere. So every sample counts.
    """
    if batch.targets is None:
        return own()
    labels = class_labels(batch.targets, scores, batch.number)
    unlabelled = (labels == IGNORED).reshape(len(labels), -1).all(1)
    if not bool(unlabelled.any()):
        return labels
    return torch.where(unlabelled.reshape(-1, *[1] * (labels.ndim - 1)), own(), labels)
