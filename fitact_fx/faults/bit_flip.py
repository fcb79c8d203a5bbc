"""Single bits that flip: the fault model of particle strikes in memory."""

from dataclasses import dataclass
from operator import index

import numpy as np
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults.drawing import draw_positions, stream
from fitact_fx.faults.fault_list import FaultList
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.memory import Memory, check_holds
from fitact_fx.faults.tensor_faults import TensorFaults


@dataclass(frozen=True, kw_only=True)
class BitFlip:
    """Every bit flips with probability `rate`, independently: a binomial number over the whole memory.

    FaultError unless 0 <= rate <= 1.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:  # false for NaN too
            raise FaultError(f"a bit error rate lies between 0 and 1; got {self.rate}")

    def draw(
        self,
        model: nn.Module | Memory,
        format: str | Format = "q15.16",  # noqa: A002 - the word of the field, and of the public API
        seed: int = 0,
        trial: int = 0,
    ) -> FaultList:
        """The faults of one trial over the model's parameters and bounds; the model is only looked at.

        They depend on the seed, the trial and each tensor's name and size: a tensor gets the same ones
        in every variant of a model, on every machine. FaultError for an unknown format, a tensor that
        cannot hold it, and a model with nothing to hit.
        """
        seed, trial = index(seed), index(trial)
        stored = find_format(format) if isinstance(format, str) else format
        tensors = []
        for name, tensor in Memory.of(model).tensors.items():
            check_holds(name, tensor, stored)
            words = stream(seed, trial, name)
            positions = draw_positions(words, tensor.numel() * stored.bits, float(self.rate))
            elements, bits = divmod(positions, stored.bits)
            tensors.append(TensorFaults(name, tuple(tensor.shape), elements, bits.astype(np.uint8)))
        return FaultList(stored, tuple(tensors), float(self.rate), seed, trial)
