"""IEEE 754 single precision: 1 sign, 8 exponent, 23 fraction bits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

NAMES = ("float32",)


@dataclass(frozen=True)
class Float32:
    """The bits as they lie in memory: exact both ways, NaN payloads and signed zeros included."""

    name: ClassVar[str] = "float32"
    bits: ClassVar[int] = 32
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)

    def encode(self, values: Tensor) -> Tensor:
        """float32 values to int32 words, any shape."""
        return values.view(torch.int32)

    def decode(self, words: Tensor) -> Tensor:
        """int32 words to float32 values, any shape."""
        return words.view(torch.float32)


def parse(name: str) -> Float32 | None:
    """The format called `name`, if it is this one."""
    return Float32() if name == "float32" else None
