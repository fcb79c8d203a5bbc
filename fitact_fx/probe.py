"""A few samples that stay the same while bounds are tried on them, each with its right answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fitact_fx.answers import Tally, class_labels, logits_of, right_classes
from fitact_fx.batches import Batch, as_batches
from fitact_fx.clean_outputs import clean_scores
from fitact_fx.holdout import Holdout

_AT_ONCE = 128  # samples in one forward: more are no faster on a CPU


@dataclass(frozen=True, eq=False)
class Probe:
    """Batches in memory, and for each the classes that count as right, as `fitact_fx.answers` says."""

    batches: tuple[Batch, ...]
    answers: tuple[Tensor, ...]

    @classmethod
    def of(cls, hard: nn.Module, batches: Sequence[Batch]) -> "Probe":
        """These samples in the order of their digests, whatever the order and size of the batches they came in."""
        _refuse_other_labels(hard, batches)
        pieces = tuple(piece for batch in _joined(batches) for piece in _ordered(batch))
        clean = [clean_scores(hard, batch) for batch in pieces]
        answers = [
            right_classes(batch.targets, scores, partial(scores.argmax, 1), batch.number)
            for batch, scores in zip(pieces, clean, strict=True)
        ]
        return cls(pieces, tuple(answers))

    def accuracy(self, model: nn.Module) -> float:
        """The share of right answers; CalibrationError if there is no sample."""
        with torch.no_grad():
            tallies = [
                Tally.of(logits_of(batch.run(model)), answer)
                for batch, answer in zip(self.batches, self.answers, strict=True)
            ]
        return sum(tallies, Tally()).share


def picked(holdout: Holdout, images: int) -> list[Batch]:
    """The `images` samples to learn from that come first by digest, or all there are."""
    digests = sorted(digest for batch in as_batches(holdout.data) for digest in batch.fingerprints())
    learned = [digest for digest in digests if digest > holdout.threshold]
    if not learned:
        return []
    last, room = learned[min(images, len(learned)) - 1], images
    found = []
    for batch in as_batches(holdout.data):
        inside = [place for place, each in enumerate(batch.fingerprints()) if holdout.threshold < each <= last]
        inside = inside[:room]  # copies of the last one
        room -= len(inside)
        if inside:
            found.append(batch.samples(torch.tensor(inside)))
    return found


def _refuse_other_labels(hard: nn.Module, batches: Sequence[Batch]) -> None:
    """While it is known which batch they came in: once joined, an error could name none."""
    for batch in batches:
        if batch.targets is not None:
            class_labels(batch.targets, clean_scores(hard, batch), batch.number)


def _ordered(batch: Batch) -> list[Batch]:
    digests = batch.fingerprints()
    order = torch.tensor(sorted(range(batch.size), key=digests.__getitem__))
    return [batch.samples(places) for places in order.split(_AT_ONCE)]


def _joined(batches: Sequence[Batch]) -> list[Batch]:
    """One batch of them all, where they fit together; a shuffling loader would leave a handful in each."""
    if not batches:
        return []
    flat = [pytree.tree_flatten((batch.args, batch.kwargs, batch.targets)) for batch in batches]
    if any(shape != flat[0][1] for _, shape in flat):
        return list(batches)
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [_column(column, [batch.size for batch in batches]) for column in columns]
    if any(column is None for column in joined):
        return list(batches)
    args, kwargs, targets = pytree.tree_unflatten([column[0] for column in joined if column is not None], flat[0][1])
    return [Batch(args, kwargs, targets)]


def _column(values: tuple[object, ...], sizes: list[int]) -> tuple[object] | None:
    """What stands in the place of these in the joined batch, in a tuple; None if they do not fit together."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values):
        return (values[0],) if all(value is values[0] or value == values[0] for value in values) else None
    one = tensors[0]
    if any(tensor.shape[1:] != one.shape[1:] or tensor.dtype != one.dtype for tensor in tensors):
        return None
    if all(tensor.ndim and len(tensor) == size for tensor, size in zip(tensors, sizes, strict=True)):
        return (torch.cat(tensors),)
    return (one,) if all(tensor.shape == one.shape and torch.equal(tensor, one) for tensor in tensors) else None
