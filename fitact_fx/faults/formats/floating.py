"""Floating point numbers as they lie in memory: from bit 0 up mantissa, exponent, sign."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_WORDS = {8: torch.int8, 16: torch.int16, 32: torch.int32}
# The types that hold every number of a format this wide, besides the format's own type.
_WIDER = {8: (torch.float16, torch.bfloat16, torch.float32), 16: (torch.float32,), 32: ()}


@dataclass(frozen=True)
class Floating:
    """A float type of torch's, `dtype`, with so many `exponent` bits.

    A tensor of that type is its own words: exact both ways, NaN payloads and signed zeros included.
    A wider value goes to the nearest number, a tie to the even one. A finite value beyond the largest
    number saturates, and so does infinity if the format is not `infinite`; NaN becomes the word `nan`.
    """

    name: str
    dtype: torch.dtype
    exponent: int
    nan: int
    infinite: bool = True

    @property
    def bits(self) -> int:
        """Bits in one word, the sign included."""
        return 8 * self.dtype.itemsize

    @property
    def fields(self) -> Mapping[str, range]:
        """The bits of "mantissa", "exponent" and "sign"."""
        sign = self.bits - 1
        start = sign - self.exponent
        return {"mantissa": range(start), "exponent": range(start, sign), "sign": range(sign, self.bits)}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The format's own type, then the wider ones that hold all its numbers."""
        return (self.dtype, *_WIDER[self.bits])

    def is_own(self, dtype: torch.dtype) -> bool:
        """Whether it is the format's own type."""
        return dtype == self.dtype

    def scale(self, values: Tensor, *, each: bool = False) -> None:
        """None: each word carries its own exponent."""

    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """Values of a type in `dtypes` to words of int8, int16 or int32, any shape."""
        if values.dtype == self.dtype:
            return values.view(_WORDS[self.bits])
        # Not from float64: torch would round it twice, first to float32.
        wide = values.float()
        largest = torch.finfo(self.dtype).max
        # Saturated before the cast, because casts differ in what they make of an overflow.
        narrow = wide.clamp(-largest, largest)
        if self.infinite:
            narrow = torch.where(wide.isinf(), wide, narrow)
        # Casts also differ in the sign and payload of a NaN.
        return narrow.to(self.dtype).view(_WORDS[self.bits]).masked_fill(wide.isnan(), self.nan)

    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        """Words as `encode` gives them to values of the format's own type, any shape."""
        return words.view(self.dtype)


_FORMATS = (
    Floating("float32", torch.float32, exponent=8, nan=0x7FC00000),
    Floating("float16", torch.float16, exponent=5, nan=0x7E00),
    Floating("bfloat16", torch.bfloat16, exponent=8, nan=0x7FC0),
    Floating("float8_e4m3", torch.float8_e4m3fn, exponent=4, nan=0x7F, infinite=False),
    Floating("float8_e5m2", torch.float8_e5m2, exponent=5, nan=0x7E),
)
NAMES = tuple(each.name for each in _FORMATS)


def parse(name: str) -> Floating | None:
    """The format called `name` here or in torch, if it is a floating point one."""
    return next((each for each in _FORMATS if name in (each.name, str(each.dtype).removeprefix("torch."))), None)
