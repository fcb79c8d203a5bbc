"""Fixed point numbers in two's complement: 1 sign bit, then integer bits, then fraction bits.

Q15.16 is the format of FitAct's fault model (1-15-16, after the public re-implementation).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fitact_fx.errors import FaultError

NAMES = ("q<integer bits>.<fraction bits> such as q15.16",)
_NAME = re.compile(r"q(\d{1,3})\.(\d{1,3})")


@dataclass(frozen=True)
class FixedPoint:
    """A word w stands for w / 2**fraction. FaultError unless it has 2 to 32 bits, the sign included.

    A value that lies between two words goes to the nearest, a tie to the even one. What lies outside
    the range saturates, infinity included; NaN becomes 0.
    """

    integer: int
    fraction: int
    # The words of a half type would not survive being written back: it has 8 or 11 significant bits.
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def __post_init__(self) -> None:
        if self.integer < 0 or self.fraction < 0 or not 2 <= self.bits <= 32:
            raise FaultError(f"{self.name} has {self.bits} bits; a fixed point format has 2 to 32, one the sign")

    @property
    def name(self) -> str:
        """For example "q15.16"."""
        return f"q{self.integer}.{self.fraction}"

    @property
    def bits(self) -> int:
        """Bits in one word, the sign included."""
        return 1 + self.integer + self.fraction

    @property
    def fields(self) -> Mapping[str, range]:
        """The bits of "fraction", "integer" and "sign"; q0.7 has no integer part, q31.0 no fraction."""
        point, sign = self.fraction, self.bits - 1
        parts = {"fraction": range(point), "integer": range(point, sign), "sign": range(sign, self.bits)}
        return {name: part for name, part in parts.items() if part}

    def is_own(self, dtype: torch.dtype) -> bool:
        """False: torch has no fixed point type."""
        return False

    def scale(self, values: Tensor, *, each: bool = False) -> None:
        """None: the unit is fixed."""

    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """float32 or float64 values to int32 words in two's complement, any shape."""
        limit = 2 ** (self.bits - 1)
        # Exact: float64 has room for every scaled float32 and for every word.
        scaled = values.double() * 2.0**self.fraction
        return scaled.round().nan_to_num(nan=0.0).clamp(-limit, limit - 1).to(torch.int32)

    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        """int32 words to float64 values, any shape; bits above the word's own are ignored."""
        sign = 2 ** (self.bits - 1)
        unsigned = words.long() & (2 * sign - 1)
        signed: Tensor = (unsigned ^ sign) - sign
        unit: float = 2.0**-self.fraction
        return signed.double() * unit


def parse(name: str) -> FixedPoint | None:
    """The format called `name`, if it is a fixed point one. FaultError if it is too wide."""
    match = _NAME.fullmatch(name)
    return FixedPoint(int(match[1]), int(match[2])) if match else None
