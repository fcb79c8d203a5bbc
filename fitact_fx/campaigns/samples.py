"""The data of a campaign: held in memory, read once, known by its fingerprint."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitact_fx.batches import Batch, as_batches
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


def parts(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What an output, or targets, are made of, each with where it stands, in order.

    Looks into mappings, sequences, dataclasses and other objects that hold attributes; not twice into one that holds
    itself.
    """
    inside = None if id(value) in above else _inside(value)
    if not inside:
        yield path, value
        return
    for key, held in inside.items():
        yield from parts(held, f"{path}/{type(value).__name__} {key!r}", (*above, id(value)))


def _inside(value: Any) -> Mapping[Any, Any] | None:
    """What stands under which key; None for what has no parts, such as a tensor or a number."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, Tensor) or callable(value):
        return None
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    attributes: Mapping[Any, Any] | None = getattr(value, "__dict__", None)
    return attributes


def tensor_bytes(tensor: Tensor) -> bytes:
    """Type, shape and raw values, the same for equal tensors only."""
    held = tensor.detach().cpu()
    kind = f"{held.layout}{held.dtype}{tuple(held.shape)}".encode()
    if held.is_quantized:
        held = held.dequantize()
    elif held.layout != torch.strided:
        held = held.to_dense()
    held = held.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return kind + (held.view(torch.uint8).numpy().tobytes() if held.numel() else b"")


def without_addresses(text: str) -> str:
    """Without where things lie in memory, which is elsewhere in the next process."""
    return re.sub(r"0x[0-9a-fA-F]+", "", text)


def leaf_bytes(leaf: Any) -> bytes:
    """What tells it from others, the same in every process."""
    if isinstance(leaf, Tensor):
        return tensor_bytes(leaf)
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:  # what NumPy prints leaves out the middle
        return f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes()
    return without_addresses(repr(leaf.tolist() if isinstance(leaf, np.ndarray) else leaf)).encode()


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
