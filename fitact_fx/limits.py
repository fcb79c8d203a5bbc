"""The range that a parameter had when it was clean, and the check against it: what is outside counts as 0."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

COPIES = ("copy0", "copy1", "copy2")
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Limits(nn.Module):
    """The range of one parameter when it was guarded: a parameter of any shape -> the same, 0 where it is outside.

    Inside means low <= element <= high, so NaN is outside; what is inside keeps its bits. `dim` is the dimension
    with a range for each index, None for one range of the whole tensor.

    The limits are memory like any other. They are stored three times, (2, ranges) each, low and then high, and every
    bit is what most copies say: one copy may hold anything.
    """

    copy0: Tensor
    copy1: Tensor
    copy2: Tensor

    def __init__(self, parameter_name: str, low: Tensor, high: Tensor, dim: int | None) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.shape = tuple(low.shape)
        self.dim = dim
        stored = torch.stack((low.detach().reshape(-1), high.detach().reshape(-1)))
        for name in COPIES:
            self.register_buffer(name, stored.clone())

    @classmethod
    def of(cls, parameter_name: str, parameter: Tensor, dim: int | None) -> "Limits":
        """The range of a parameter as it is now, which holds numbers only."""
        with torch.no_grad():
            values = parameter.detach()
            if values.numel() == 0:
                low = high = values.new_zeros([1] * values.ndim)
                return cls(parameter_name, low, high, None)
            others = tuple(each for each in range(values.ndim) if dim is None or each != dim)
            if not others:  # amin without dimensions is over all of them
                return cls(parameter_name, values.clone(), values.clone(), dim)
            return cls(parameter_name, values.amin(others, keepdim=True), values.amax(others, keepdim=True), dim)

    @classmethod
    def known(cls, parameter_name: str, parameter: Tensor, limits: Tensor, dim: int | None) -> "Limits":
        """These limits, (2, ranges), for a parameter whatever it holds now."""
        shape = [size if place == dim else 1 for place, size in enumerate(parameter.shape)]
        low, high = limits.to(parameter).unbind()
        return cls(parameter_name, low.reshape(shape), high.reshape(shape), dim)

    @property
    def copies(self) -> tuple[Tensor, Tensor, Tensor]:
        """The limits as they are stored."""
        return self.copy0, self.copy1, self.copy2

    def voted(self) -> Tensor:
        """The limits, (2, ranges): each bit as at least two copies have it."""
        return voted(self.copies, self.copy0.dtype)

    def low_and_high(self) -> tuple[Tensor, Tensor]:
        """The limits in a shape that broadcasts over the parameter."""
        limits = self.voted()
        return limits[0].view(self.shape), limits[1].view(self.shape)

    def forward(self, parameter: Tensor) -> Tensor:
        copies = self.copies
        if torch.is_grad_enabled() or not parameter.requires_grad or torch.compiler.is_compiling():
            return limited(parameter, copies, self.shape, copies[0].dtype)
        # By `requires_grad`, torch.matmul chooses how it multiplies and so how it rounds, with gradients off too.
        if not torch.is_inference_mode_enabled():
            return limited(parameter, copies, self.shape, copies[0].dtype).requires_grad_()
        with torch.inference_mode(False), torch.no_grad():
            return limited(parameter, copies, self.shape, copies[0].dtype).requires_grad_()

    def extra_repr(self) -> str:
        ranges = "one range" if self.dim is None else f"{self.copy0.shape[1]} ranges over dimension {self.dim}"
        return f"{self.parameter_name}, {ranges}"


def voted(copies: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Three copies of numbers of that type -> one: each bit as at least two of them have it."""
    a, b, c = (each.view(WORDS[dtype.itemsize]) for each in copies)
    return ((a & b) | ((a | b) & c)).view(dtype)


def limited(parameter: Tensor, copies: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The parameter with 0 for what is outside the limits in `copies`, whose ranges have that shape."""
    limits = voted(copies, dtype)
    low, high = limits[0].view(shape), limits[1].view(shape)
    # NaN compares false. Not torch.clamp: what lies outside is a fault, and 0 harms less than a limit does.
    return parameter.masked_fill(~((parameter >= low) & (parameter <= high)), 0)
