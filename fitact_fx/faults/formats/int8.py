"""8-bit integers times a scale, as quantized inference stores weights: symmetric, so zero is word 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fitact_fx.errors import FaultError

NAMES = ("int8", "int8_per_channel")
_LARGEST = 127  # -128 stays unused, so that the range is symmetric; only a fault produces it


@dataclass(frozen=True)
class Int8:
    """A word w stands for w * scale, where 127 * scale is the largest finite magnitude of the tensor.

    With `per_channel` each index of dimension 0 has a scale of its own. A tensor of one dimension, a bias
    or the bounds of channels, still has one: with a scale per number every word would be 127, 0 or -127.

    A value that lies between two words goes to the nearest, a tie to the even one; infinity saturates,
    NaN becomes 0. A tensor of type int8 is its own words and has no scale.
    """

    per_channel: bool = False
    bits: ClassVar[int] = 8
    fields: ClassVar[Mapping[str, range]] = {"integer": range(7), "sign": range(7, 8)}
    # Not the half types: -128 times the scale of a tensor near their largest number would be infinite,
    # and bfloat16 misses the value of a word by up to a quarter of the scale.
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int8, torch.float32, torch.float64)

    @property
    def name(self) -> str:
        """ "int8" or "int8_per_channel"."""
        return NAMES[self.per_channel]

    def is_own(self, dtype: torch.dtype) -> bool:
        """Whether it is int8."""
        return dtype == torch.int8

    def scale(self, values: Tensor, *, each: bool = False) -> Tensor | None:
        """The scale of a whole tensor: float64 of shape (), or (C, 1, 1, ...) per channel; None for int8.

        It is 1 where there is no finite value but zero. `each`: one per index of dimension 0 in any case.
        """
        if values.dtype == torch.int8:
            return None
        if not values.numel():
            return torch.ones((), dtype=torch.float64, device=values.device)
        channels = each or (self.per_channel and values.ndim >= 2)
        # Detached: words have no gradient, and neither have the numbers of any other format.
        largest = _largest(values.detach(), channels)
        # Divided by a tensor: by a number, a GPU would multiply with its rounded reciprocal.
        scale = largest.double() / torch.full_like(largest, _LARGEST, dtype=torch.float64)
        return torch.where(scale > 0, scale, 1.0)

    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """Values of a type in `dtypes` to int8 words, any shape. FaultError for floats without a scale."""
        if values.dtype == torch.int8:
            return values
        if scale is None:
            raise FaultError(f"{self.name} words need a scale; make it from the whole tensor with scale(tensor)")
        steps = (values.double() / scale).round().nan_to_num(nan=0.0)
        return steps.clamp(-_LARGEST, _LARGEST).to(torch.int8)

    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        """int8 words to float64 values, any shape; without a scale to themselves."""
        return words if scale is None else words.double() * scale


def _largest(values: Tensor, channels: bool) -> Tensor:
    """The largest finite magnitude, of shape () or (C, 1, 1, ...)."""
    dims = tuple(range(1, values.ndim)) if channels else tuple(range(values.ndim))
    if not torch.compiler.is_compiling():
        # Without copies of the tensor, where all of it is finite; they would take more memory than the rest together.
        largest = torch.maximum(-values.amin(dims, keepdim=channels), values.amax(dims, keepdim=channels))
        if bool(largest.isfinite().all()):
            return largest
    magnitudes = torch.where(values.isfinite(), values.abs(), 0.0)
    return magnitudes.amax(dims, keepdim=channels)


def parse(name: str) -> Int8 | None:
    """The format called `name`, if it is one of these two."""
    return Int8(per_channel=name == "int8_per_channel") if name in NAMES else None
