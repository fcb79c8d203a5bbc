"""The range that a parameter had when it was clean, and the check against it: what is outside counts as 0.

On a CPU, a parameter with nothing outside is passed on itself: to ask costs less than to copy, and whoever shares it,
writes to it or looks at its layout finds what the model without a guard has. Where nobody can ask, since a compiler
or a transform runs or a GPU would have to be waited for, the same is said in operators without a branch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

COPIES = ("copy0", "copy1", "copy2")
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Limits(nn.Module):
    """The range of one parameter when it was guarded: a parameter of any shape -> the same, 0 where it is outside.

    Inside means low <= element <= high, so NaN is outside, and infinity too; what is inside keeps its bits. `dim` is
    the dimension with a range for each index, None for one range of the whole tensor; ValueError for a dimension of a
    vector, whose ranges would be its elements.

    The limits are memory like any other. They are stored three times, (2, ranges) each, low and then high, and every
    bit is what most copies say: one copy may hold anything.
    """

    copy0: Tensor
    copy1: Tensor
    copy2: Tensor

    def __init__(self, parameter_name: str, low: Tensor, high: Tensor, dim: int | None) -> None:
        super().__init__()
        if dim is not None and low.ndim < 2:
            raise ValueError(f"parameter {parameter_name} has fewer than two dimensions, and so one range")
        self.parameter_name = parameter_name
        self.shape = tuple(low.shape)
        self.dim = dim
        self.others = tuple(each for each in range(low.ndim) if each != dim)
        stored = torch.stack((low.detach().reshape(-1), high.detach().reshape(-1)))
        for name in COPIES:
            self.register_buffer(name, stored.clone())
        _keep_finite(self)
        self.register_load_state_dict_post_hook(_keep_finite)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, parameter_name: str, parameter: Tensor, dim: int | None) -> "Limits":
        """The range of a parameter as it is now, which holds numbers only."""
        with torch.no_grad():
            values = parameter.detach()
            if values.numel() == 0:
                low = high = values.new_zeros([1] * values.ndim)
                return cls(parameter_name, low, high, None)
            others = tuple(each for each in range(values.ndim) if dim is None or each != dim)
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

    def hold(self, values: Tensor) -> bool:
        """Whether none of these values is outside."""
        if not values.numel():
            return True
        stored: Any = self._buffers  # where a Module looks last
        agree = torch.equal(stored["copy0"], stored["copy1"])
        limits = stored["copy0"] if agree else self.voted()
        # The extremes of a parameter that nobody touched are its limits, and a NaN is an extreme that equals nothing.
        if torch.equal(self._extremes(values).view_as(limits), limits):
            return True
        low, high = (each.view(self.shape) for each in limits)
        return bool(((values >= low) & (values <= high)).all())

    def _extremes(self, values: Tensor) -> Tensor:
        # torch.aminmax is the faster one for a vector; over some dimensions it takes twenty times as long.
        both = torch.aminmax(values) if values.ndim < 2 else (values.amin(self.others), values.amax(self.others))
        return torch.stack(tuple(both))

    def forward(self, parameter: Tensor) -> Tensor:
        asked = can_be_asked(parameter)
        if asked and parameter.is_cpu and self.hold(parameter.detach()):
            return parameter
        zeroed: Any = _Zeroed.apply if asked else _zeroed
        inside = self._inside(parameter)
        if torch.is_grad_enabled() or not parameter.requires_grad or torch.compiler.is_compiling():
            return zeroed(parameter, inside)  # type: ignore[no-any-return]
        if parameter.dtype == torch.float32 and torch.is_autocast_enabled(parameter.device.type):
            return _zeroed(parameter, inside)  # autocast would keep a cast copy of every leaf until its block ends
        # By `requires_grad`, torch.matmul chooses how it multiplies and so how it rounds, with gradients off too.
        with torch.inference_mode(False), torch.no_grad():
            return _zeroed(parameter, inside).requires_grad_()

    def _inside(self, parameter: Tensor) -> Tensor:
        return _inside(parameter, self.copies, self.shape, self.copy0.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "Limits":
        """A limit that is too large for another type becomes its largest number, not infinity."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _keep_finite(self)
        return self

    def extra_repr(self) -> str:
        ranges = "one range" if self.dim is None else f"{self.copy0.shape[1]} ranges over dimension {self.dim}"
        return f"{self.parameter_name}, {ranges}"


def can_be_asked(parameter: Tensor) -> bool:
    """Whether what a Parameter holds can be asked for: no compiler, tracer, transform or fake tensor is about."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    return isinstance(parameter, nn.Parameter)  # what a transform of torch.func runs on is none


def voted(copies: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Three copies of numbers of that type -> one: each bit as at least two of them have it."""
    a, b, c = (each.view(WORDS[dtype.itemsize]) for each in copies)
    return ((a & b) | ((a | b) & c)).view(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in every bit, also of a NaN, and in their order."""
    if one.dtype != other.dtype or one.device != other.device:
        return False
    words = WORDS[one.itemsize]
    return torch.equal(one.view(words), other.view(words))


def limited(parameter: Tensor, copies: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The parameter with 0 for what is outside the limits in `copies`, whose ranges have that shape."""
    return _zeroed(parameter, _inside(parameter, copies, shape, dtype))


def _inside(parameter: Tensor, copies: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    limits = voted(copies, dtype)
    return (parameter >= limits[0].view(shape)) & (parameter <= limits[1].view(shape))  # NaN compares false


def _zeroed(parameter: Tensor, inside: Tensor) -> Tensor:
    """The parameter, in its own layout, with 0 for what is not inside.

    Not torch.clamp: what lies outside is a fault, and 0 harms less than a limit does.
    """
    return torch.where(inside, parameter, 0)


class _Zeroed(torch.autograd.Function):
    """The same for gradients that may be sparse, as those of an embedding are: torch.where has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parameter: Tensor, inside: Tensor) -> Tensor:
        return _zeroed(parameter, inside)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return (gradient * inside if gradient.is_sparse else _zeroed(gradient, inside)), None


def _keep_finite(limits: nn.Module, *_: object) -> None:
    """Let the limits be numbers, so that infinity is outside of them; whatever else they hold stays."""
    for stored in limits.buffers():
        most = torch.finfo(stored.dtype).max
        with torch.inference_mode(stored.is_inference()), torch.no_grad():
            stored.clamp_(-most, most)
