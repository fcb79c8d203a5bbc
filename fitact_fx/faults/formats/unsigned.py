"""Unsigned 8-bit codes, as bounds are stored in. What one stands for is said elsewhere, see `fitact_fx.codes`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

NAMES: tuple[str, ...] = ()  # none for a user: no network computes with codes, and only packed bounds are stored so


@dataclass(frozen=True)
class Unsigned8:
    """A word w stands for the code w, 0 to 255. A tensor of type uint8 is its own words."""

    name: ClassVar[str] = "uint8"
    bits: ClassVar[int] = 8
    fields: ClassVar[Mapping[str, range]] = {"code": range(8)}
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.uint8,)

    def is_own(self, dtype: torch.dtype) -> bool:
        """Whether it is uint8."""
        return dtype == torch.uint8

    def scale(self, values: Tensor, *, each: bool = False) -> None:
        """None: a code is a whole number."""

    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """uint8 codes to the int8 words that have the same bits, any shape."""
        return values.view(torch.int8)

    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        """And back."""
        return words.view(torch.uint8)


def parse(name: str) -> Unsigned8 | None:
    """The format called `name`, if it is this one."""
    return Unsigned8() if name == Unsigned8.name else None
