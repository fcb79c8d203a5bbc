"""The words that a fault list hits: what they were and what they became, seen while the faults are applied."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fitact_fx.faults import Effect, FaultList, Format, TensorFaults
from fitact_fx.injected import Injected

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Word:
    """One word that was hit: `bits` are those that the list names, none where it names the new word.

    Words are the format's, as unsigned numbers; values are what the model computes with, and codes of packed bounds.
    """

    tensor: str
    element: int
    index: tuple[int, ...]
    bits: tuple[int, ...]
    word_before: int
    word_after: int
    value_before: float
    value_after: float

    def as_json(self) -> dict[str, Any]:
        """With NaN and infinity as strings: JSON has no such numbers."""
        values = {"value_before": self.value_before, "value_after": self.value_after}
        return asdict(self) | {name: v if np.isfinite(v) else str(v) for name, v in values.items()}


@dataclass(frozen=True, eq=False)
class HitWords:
    """The hit words of one tensor, by element: (m,) words before and after, (m,) values before and after."""

    faults: TensorFaults
    bits: tuple[tuple[int, ...], ...]
    words: tuple[Integers, Integers]
    values: tuple[Tensor, Tensor]

    @property
    def elements(self) -> Integers:
        """Which elements, (m,) ascending; each once, however many of its bits are hit."""
        return np.unique(self.faults.elements)

    @property
    def changed(self) -> int:
        """How many are another word now: a bit may be stuck at what it was."""
        return int((self.words[0] != self.words[1]).sum())

    @property
    def parts(self) -> tuple[str | NDArray[Any], ...]:
        """What is told apart by `digest`."""
        return self.faults.name, self.elements, *self.words, *map(raw, self.values)

    def __len__(self) -> int:
        return len(self.bits)

    def __iter__(self) -> Iterator[Word]:
        (before, after), (old, new) = self.words, self.values
        for number, element in enumerate(self.elements.tolist()):
            index = tuple(map(int, np.unravel_index(element, self.faults.shape)))
            words, values = (int(before[number]), int(after[number])), (float(old[number]), float(new[number]))
            yield Word(self.faults.name, element, index, self.bits[number], *words, *values)


class Witness:
    """Sees the hit words of one tensor twice: before the faults are in it, and with them."""

    def __init__(self, faults: FaultList, one: TensorFaults) -> None:
        self.format, self.effect, self.one = faults.format_of(one), faults.effect, one
        self.elements, starts = np.unique(one.elements, return_index=True)
        self.named = np.split(one.values.astype(np.int64), starts[1:])
        self.words: list[Integers] = []
        self.values: list[Tensor] = []

    def see_before(self, tensor: Tensor) -> None:
        """Read the words, and work out what the list makes of them."""
        values = self._hit_values(tensor)
        words = _words(self.format, values, tensor.detach(), self.elements)
        self.words, self.values = [words, _faulty(words, self.named, self.effect)], [values]

    def see_after(self, tensor: Tensor) -> None:
        """Read what the model computes with."""
        self.values.append(self._hit_values(tensor))

    def watch(self, node: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """As a hook of the injection node."""
        self.see_before(args[0])
        self.see_after(output)

    def hit(self) -> HitWords:
        """What was seen."""
        bits = tuple(() if self.effect.of_word else tuple(named.tolist()) for named in self.named)
        return HitWords(self.one, bits, (self.words[0], self.words[1]), (self.values[0], self.values[1]))

    def _hit_values(self, tensor: Tensor) -> Tensor:
        # A batch larger than that of the list begins with the list's samples: elements count the same.
        return tensor.detach().reshape(-1)[torch.from_numpy(self.elements).to(tensor.device)].cpu()


@contextmanager
def watched(model: nn.Module, witnesses: Mapping[str, Witness]) -> Iterator[None]:
    """Inside, the injection nodes of these names show what passes them."""
    nodes = [module for module in model.modules() if isinstance(module, Injected) and module.name in witnesses]
    handles = [node.register_forward_hook(witnesses[node.name].watch) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _words(stored: Format, values: Tensor, whole: Tensor, elements: Integers) -> Integers:
    """The words of these elements, whose values are `values`, as unsigned numbers."""
    scale = stored.scale(whole)
    if scale is not None and scale.numel() > 1:
        scale = scale.expand(whole.shape)[np.unravel_index(elements, tuple(whole.shape))]
    signed = stored.encode(values, None if scale is None else scale.reshape(-1).cpu())
    unsigned: Integers = signed.numpy().astype(np.int64) & (2**stored.bits - 1)
    return unsigned


def _faulty(words: Integers, named: list[Integers], effect: Effect) -> Integers:
    """What these words become; for an effect on words `named` are the new ones, and bits otherwise."""
    if effect.of_word:
        return np.array([int(new[0]) for new in named], np.int64)
    mask = np.array([sum(1 << bit for bit in bits.tolist()) for bits in named], np.int64)
    kept = words & ~mask if effect.clears else words
    return kept ^ mask if effect.flips else kept


def raw(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, row by row."""
    flat: NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def digest(parts: Iterable[str | NDArray[Any]]) -> str:
    """128 bits in hexadecimal, of names and of numbers as they lie in memory."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return found.hexdigest()
