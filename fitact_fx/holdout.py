"""Data in two parts, one to learn from and one to check on.

Each sample goes by a digest of its own content, so the split is the same in any order, in any batches
and in every pass over a shuffling DataLoader, and copies of a sample fall on one side. (Random
augmentation makes new samples at every pass, and these fall on either side.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fitact_fx.answers import IGNORED
from fitact_fx.batches import Batch, as_batches, labelled_alike
from fitact_fx.errors import CalibrationError

FEWEST_SAMPLES = 16  # to learn from: bounds that fit fewer say nothing about any other


@dataclass(frozen=True)
class Holdout:
    """`data` split at a digest: samples at or below `threshold` are held out.

    There are `held_out` of these and `learned` others; `labelled` says whether any of all these has a label.
    """

    data: object
    threshold: bytes
    held_out: int
    learned: int
    labelled: bool = False

    @classmethod
    def of(cls, data: object, share: float) -> "Holdout":
        """Hold out `share` of the samples, at least one; CalibrationError if that leaves too few to learn from.

        Nor may some batches have labels and others none.
        """
        digests, labelled = [], False
        for batch in labelled_alike(as_batches(data)):
            digests += batch.fingerprints()
            labelled = labelled or (batch.targets is not None and bool((batch.targets != IGNORED).any()))
        digests.sort()
        threshold = digests[max(0, round(share * len(digests)) - 1)]
        held_out = sum(digest <= threshold for digest in digests)
        if held_out == len(digests):
            raise CalibrationError(
                f"of the {len(digests)} samples in the data, {len(set(digests))} differ: too few to learn from some "
                "and check on others;\n  pass more data"
            )
        if (learned := len(digests) - held_out) < FEWEST_SAMPLES:
            raise CalibrationError(
                f"{learned} samples are too few to learn from, beside {held_out} to check on;\n"
                f'  pass {math.ceil(FEWEST_SAMPLES / (1 - share))} or more, or take the ranges seen: scheme="ranger"'
            )
        return cls(data, threshold, held_out, learned, labelled)

    def learning_batches(self, size: int) -> Iterator[Batch]:
        """The samples to learn from, over and over, at most `size` at a time."""
        while True:
            count = 0
            for batch in self._part(held_out=False):
                count += batch.size
                for places in torch.arange(batch.size).split(size):
                    yield batch.samples(places)
            if count == 0:
                raise CalibrationError(
                    "no sample was left to learn from in this pass over the data;\n"
                    "  pass data whose samples are the same in every pass (no random augmentation)"
                )

    def learned_batches(self) -> Iterator[Batch]:
        """The samples to learn from, once."""
        return self._part(held_out=False)

    def held_out_batches(self) -> Iterator[Batch]:
        """The samples to check on, once."""
        return self._part(held_out=True)

    def _part(self, *, held_out: bool) -> Iterator[Batch]:
        for batch in as_batches(self.data):
            chosen = [(digest <= self.threshold) == held_out for digest in batch.fingerprints()]
            if any(chosen):
                yield batch.samples(torch.tensor(chosen).nonzero().flatten())
