"""The data of a campaign: held in memory, read once, known by its fingerprint."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fitact_fx.batches import Batch, as_batches
from fitact_fx.campaigns.fingerprints import leaf_bytes, parts
from fitact_fx.errors import CalibrationError, CampaignError

_AT_ONCE = 256  # samples per batch where the caller made no batches


@dataclass(frozen=True, eq=False)
class Samples:
    """Batches, and beside each its targets as a metric gets them: a tensor, anything else that was given, or None."""

    batches: tuple[Batch, ...]
    targets: tuple[Any, ...]

    @classmethod
    def read(cls, data: object) -> "Samples":
        """The batches of `data`, or (inputs, targets), two tensors, cut into batches.

        Targets may be anything that a metric understands; only tensors of whole numbers make an accuracy. CampaignError
        for no data and for what is no batch.
        """
        match data:
            # A tuple only: a list of two tensors is two batches.
            case tuple((Tensor() as inputs, Tensor() as targets)):
                data = _cut(inputs, targets)
        items = list(data) if isinstance(data, Iterable) and not isinstance(data, Tensor) else data
        plain = [_without_odd_targets(item) for item in items] if isinstance(items, list) else items
        try:
            batches = tuple(as_batches(plain, "measure on"))
        except CalibrationError as error:
            raise CampaignError(str(error)) from error
        assert isinstance(items, list)
        return cls(batches, tuple(_odd_targets(item, batch) for item, batch in zip(items, batches, strict=True)))

    @cached_property
    def fingerprint(self) -> str:
        """128 bits of every value, type and shape, in this order and in these batches."""
        digest = hashlib.blake2b(digest_size=16)
        for batch, targets in zip(self.batches, self.targets, strict=True):
            for path, leaf in parts((batch.args, batch.kwargs, targets)):
                for told in (path.encode(), leaf_bytes(leaf)):
                    digest.update(len(told).to_bytes(8, "little") + told)
        return digest.hexdigest()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples per batch."""
        return tuple(batch.size for batch in self.batches)


def _cut(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
        counts = [len(each) if each.ndim else "no" for each in (inputs, targets)]
        raise CampaignError(f"there are {counts[0]} samples and {counts[1]} targets for them")
    return list(zip(inputs.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True))


def _is_odd(item: object) -> bool:
    """(inputs, targets) whose targets are neither a tensor nor missing: boxes, for example."""
    pair = isinstance(item, Sequence) and len(item) == 2
    return pair and item[1] is not None and not isinstance(item[1], Tensor)  # type: ignore[index]


def _without_odd_targets(item: Any) -> object:
    return (item[0], None) if _is_odd(item) else item


def _odd_targets(item: Any, batch: Batch) -> Any:
    return item[1] if _is_odd(item) else batch.targets
