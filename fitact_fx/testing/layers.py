"""Layers: convolutions, linear layers, norms, pools, dropout. Each adapts to the shape it meets."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from fitact_fx.testing.step import Layer, Made, among, arguments, inplace
from fitact_fx.testing.writing import LARGEST, Shape


@dataclass(frozen=True, repr=False)
class Linear(Layer):
    """A linear layer on the last dimension; `width` 0 keeps its size."""

    width: int = among(0, 1, 2, 3, 4, 6)
    bias: bool = among(True, False)
    stem: ClassVar[str] = "linear"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        out = self.width or shape[-1]
        if out * prod(shape[:-1]) > LARGEST:
            out = shape[-1]
        return Made(f"nn.Linear({arguments(shape[-1], out, bias=(self.bias, True))})", (*shape[:-1], out))


@dataclass(frozen=True, repr=False)
class Convolution(Layer):
    """A convolution over as many dimensions as there are, a linear layer where there are none.

    `width` 0 keeps the number of channels; `groups` 0 is one group per channel.
    """

    width: int = among(0, 1, 2, 3, 4, 6)
    kernel: int = among(1, 3)
    stride: int = among(1, 2)
    dilation: int = among(1, 2)
    groups: int = among(1, 2, 0)
    bias: bool = among(True, False)
    transposed: bool = among(False, True)
    stem: ClassVar[str] = "conv"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        if len(shape) == 1:
            return Linear(width=self.width, bias=self.bias).made(shape, dtype)
        channels, *sizes = shape
        out = self.width or channels
        groups = self.groups or channels
        if channels % groups or out % groups:
            groups, out = (channels, channels) if self.groups == 0 else (1, out)
        stride, sizes = self._sizes(out, sizes)
        padding = self.dilation * (self.kernel // 2)
        told = arguments(
            channels,
            out,
            self.kernel,
            stride=(stride, 1),
            padding=(padding, 0),
            dilation=(self.dilation if self.kernel > 1 else 1, 1),
            groups=(groups, 1),
            bias=(self.bias, True),
        )
        name = "ConvTranspose" if self.transposed else "Conv"
        return Made(f"nn.{name}{len(sizes)}d({told})", (out, *sizes))

    def _sizes(self, out: int, sizes: list[int]) -> tuple[int, list[int]]:
        """The stride, 1 where the result would grow too large, and the sizes it leads to."""
        if not self.transposed:
            return self.stride, [(size - 1) // self.stride + 1 for size in sizes]
        larger = [(size - 1) * self.stride + 1 for size in sizes]
        return (self.stride, larger) if out * prod(larger) <= LARGEST else (1, sizes)


@dataclass(frozen=True, repr=False)
class Norm(Layer):
    """A norm; `plain` leaves out its weights, or for an instance norm puts them in."""

    kind: str = among("LayerNorm", "BatchNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "LocalResponseNorm")
    plain: bool = among(False, True)
    stem: ClassVar[str] = "norm"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        channels, rank = shape[0], len(shape) - 1
        if self.kind in ("LayerNorm", "RMSNorm"):
            told = arguments(shape if self.plain else shape[-1])
            return Made(f"nn.{self.kind}({told})", shape)
        # Torch takes no other memory format in more dimensions, nor half types.
        if self.kind == "LocalResponseNorm" and rank == 1 and dtype in (torch.float32, torch.float64):
            return Made("nn.LocalResponseNorm(2)", shape)
        if self.kind == "BatchNorm":
            return Made(f"nn.BatchNorm{max(rank, 1)}d({arguments(channels, affine=(not self.plain, True))})", shape)
        # An instance norm refuses a single element per channel.
        if self.kind == "InstanceNorm" and prod(shape[1:]) > 1:
            return Made(f"nn.InstanceNorm{rank}d({arguments(channels, affine=(self.plain, False))})", shape)
        groups = 1 if channels % 2 else 2
        if prod(shape) == groups:  # a group norm refuses single elements even in evaluation mode
            return Made(f"nn.LayerNorm({shape[-1]})", shape)
        return Made(f"nn.GroupNorm({arguments(groups, channels, affine=(not self.plain, True))})", shape)


@dataclass(frozen=True, repr=False)
class Pool(Layer):
    """A pool over as many dimensions as there are; an adaptive one has `size` as its output size."""

    kind: str = among("AdaptiveAvgPool", "AvgPool", "MaxPool", "AdaptiveMaxPool")
    size: int = among(1, 2)
    stem: ClassVar[str] = "pool"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        channels, *sizes = shape
        if not sizes:
            return Made("nn.Identity()", shape, keeps=True)
        if self.kind.startswith("Adaptive"):
            return Made(f"nn.{self.kind}{len(sizes)}d({self.size})", (channels, *(self.size for _ in sizes)))
        if self.kind == "AvgPool" and len(sizes) == 3 and dtype in (torch.float16, torch.bfloat16):
            return Made("nn.AdaptiveAvgPool3d(1)", (channels, 1, 1, 1))  # torch has no other for these on a CPU
        window = min(2, *sizes)
        if self.size == 2 and min(sizes) > 2:  # overlapping windows, as at the head of a ResNet
            smaller = [(size - 1) // 2 + 1 for size in sizes]
            return Made(f"nn.{self.kind}{len(sizes)}d(3, stride=2, padding=1)", (channels, *smaller))
        return Made(f"nn.{self.kind}{len(sizes)}d({window})", (channels, *(size // window for size in sizes)))


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Dropout of elements or of whole channels."""

    kind: str = among("Dropout", "channels", "AlphaDropout")
    inplace: bool = inplace()
    stem: ClassVar[str] = "dropout"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        rank = len(shape) - 1
        name = self.kind if self.kind != "channels" else f"Dropout{rank}d" if rank else "Dropout"
        told = arguments(0.25, inplace=(self.inplace, False))
        return Made(f"nn.{name}({told})", shape, keeps=True, overwrites=self.inplace)


@dataclass(frozen=True, repr=False)
class Passing(Layer):
    """A module that changes nothing but the shape."""

    kind: str = among("Identity", "Flatten")
    stem: ClassVar[str] = "pass"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        given = (prod(shape),) if self.kind == "Flatten" else shape
        return Made(f"nn.{self.kind}()", given, keeps=True)
