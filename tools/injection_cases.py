"""What tools/measure_injection.py injects, and how it reads from a model's own words what was done to it."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fitact_fx.faults import BitFlip, FaultList, TensorFaults, find_format

Trial = Callable[[], float]
"""One injection, over a whole test set; returns the seconds it added."""

WORD = 32
INPUT = (3, 32, 32)
BATCH = 128
IMAGES = 10_000
FORWARDS = -(-IMAGES // BATCH)
ONE_BIT = ("layer4.1.conv2.weight", 30)
"""The tensor and the bit of a single fault: one of the three largest tensors, where it most likely falls."""
INJECTED = (nn.Conv2d, nn.Linear)
"""The layers whose weights the peers inject into: MRFI's preset, PyTorchFI's tests."""


@dataclass(frozen=True)
class Case:
    """What is injected: one row of the table. `rate` is None where it is one bit, whatever the model's size."""

    label: str
    rate: float | None
    faults: FaultList


@dataclass(frozen=True)
class Check:
    """What a tool did to a model in one run, as read from the model's own words."""

    words: int
    expected: float
    hit: int
    tensors: int
    per_bit: tuple[int, ...]
    restored: str

    @property
    def fields(self) -> tuple[int, int, int]:
        """How many sign, exponent and mantissa bits were flipped."""
        return self.per_bit[31], sum(self.per_bit[23:31]), sum(self.per_bit[:23])


def case_of(model: nn.Module, rate: float | None, trial: int = 0) -> Case:
    """The faults of one trial at the rate, or in one bit."""
    if rate is not None:
        return Case(f"BER {rate:g}", rate, BitFlip(rate=rate).draw(model, format="float32", seed=0, trial=trial))
    name, bit = ONE_BIT
    shape = tuple(model.get_parameter(name).shape)
    element = np.array([1_234_567 + trial])
    one = TensorFaults(name, shape, element, np.array([bit], np.uint8))
    return Case("one weight bit", None, FaultList(find_format("float32"), (one,)))


def words_of(model: nn.Module, only: tuple[type[nn.Module], ...] = ()) -> dict[str, Tensor]:
    """Copies of the model's parameters as int32 words; with `only`, the weights of modules of these types."""
    names = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, only)} if only else None
    return {
        name: parameter.detach().clone().view(torch.int32)
        for name, parameter in model.named_parameters()
        if names is None or name in names
    }


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[int, int, tuple[int, ...]]:
    """How many words differ, in how many tensors, and how often each of the 32 bits was flipped."""
    flips = [(before[name] ^ after[name]).flatten() for name in before]
    found = [each[each != 0] for each in flips]
    words = torch.cat(found).numpy()
    bits = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little").reshape(-1, WORD)
    return len(words), sum(len(each) > 0 for each in found), tuple(int(n) for n in bits.sum(0))


def expected_words(words: Mapping[str, Tensor], rate: float) -> float:
    """How many words have at least one flipped bit, on average."""
    return sum(each.numel() for each in words.values()) * (1 - (1 - rate) ** WORD)


def same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(before[name], after[name]) for name in before)


def masks_of(faults: FaultList) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every tensor that is hit: its hit elements, and the int32 masks of their hit bits."""
    by_tensor: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, element, bit in faults.rows:
        by_tensor[name].append((element, bit))
    return {name: merged(*np.array(pairs, np.int64).T) for name, pairs in by_tensor.items()}


def merged(elements: NDArray[np.int64], bits: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Each hit element once, and the int32 mask of its hit bits."""
    once, place = np.unique(elements, return_inverse=True)
    masks = np.zeros(len(once), np.int64)
    np.bitwise_or.at(masks, place, np.int64(1) << bits)
    return torch.from_numpy(once), torch.from_numpy(masks.astype(np.uint32).view(np.int32))
