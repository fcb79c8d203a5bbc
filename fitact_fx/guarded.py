"""What the guard of a model's parameters puts into its graph: limits that each parameter passes before it is used.

    y = conv1(x)    ->    weight = limits.conv1.weight(conv1.weight)     # outside its limits, an element is 0
                          y = conv1(x, guarded_parameters={"weight": weight})

The call stays the module's own: an `Exchange`, a pair of hooks, lets it run on these values in the place of its
Parameters, and puts those back behind it. So hooks, names, `state_dict` and the module itself stay what they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from fitact_fx.unseen import UnseenCode

GUARDED = "guarded_parameters"
"""The keyword under which a called module gets values for its Parameters, by name."""

COPIES = ("copy0", "copy1", "copy2")
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LOCK = Lock()  # held while tensors change places, and not while a module runs


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


class Exchange:
    """Lets a module run on guarded values in the place of its Parameters; called without any, it runs on those.

    Several threads may call a module at the same time; its Parameters are back when the last of them is done.
    """

    def __init__(self) -> None:
        self.own: list[Callable[[], None]] = []  # a stack: a module may be called inside of its own call

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the values out of the call's arguments, and put them where the module looks for its Parameters."""
        given: dict[str, Tensor] = kwargs.pop(GUARDED, {})
        if not torch.compiler.is_compiling():
            for value in given.values():
                value._is_param = True  # noqa: SLF001  by which torch tells a Parameter
        with _alone():
            put_in, put_back = exchange_of(module.root if isinstance(module, UnseenCode) else module, given)
            self.own.append(put_back)  # first, as an interrupt may come next
            put_in()
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Put the Parameters back, also if the module raised."""
        with _alone():
            if self.own:  # nothing is to be put back if somebody else's hook raised before ours ran
                self.own.pop()()

    @staticmethod
    def stop(model: nn.Module) -> None:
        """Put all Parameters back in modules that were interrupted, for which torch does not call hooks."""
        for module in model.modules():
            for exchange in _exchanges(module):
                while exchange.own:
                    exchange.after(module, (), None)

    @staticmethod
    def drop(module: nn.Module) -> None:
        """Let this module take none any more."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if _is_exchange(hook)]:
                del hooks[number]

    @classmethod
    def let(cls, module: nn.Module) -> None:
        """Let this module take guarded values."""
        if not takes_guarded(module):
            exchange = cls()
            # First and last: the user's own hooks see the values that the module runs on.
            module.register_forward_pre_hook(exchange.before, with_kwargs=True, prepend=True)
            module.register_forward_hook(exchange.after, always_call=True)


def takes_guarded(module: nn.Module) -> bool:
    """Whether the module takes guarded values for its Parameters."""
    return any(True for _ in _exchanges(module))


def _exchanges(module: nn.Module) -> Iterator[Exchange]:
    for hook in module._forward_pre_hooks.values():
        if _is_exchange(hook):
            yield hook.__self__  # type: ignore[attr-defined]


def _is_exchange(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), Exchange)


def limits_of(model: nn.Module) -> dict[str, list[Limits]]:
    """Name of a parameter -> its limits, one for each graph that reads it; empty for a model without a guard."""
    found: dict[str, list[Limits]] = {}
    for module in model.modules():
        if isinstance(module, Limits):
            found.setdefault(module.parameter_name, []).append(module)
    return found


def guard_bytes(model: nn.Module) -> int:
    """The memory of all limits, every copy counted; 0 for a model without a guard."""
    each = (limits for every in limits_of(model).values() for limits in every)
    return sum(copy.numel() * copy.element_size() for limits in each for copy in limits.buffers())


def exchange_of(module: nn.Module, given: Mapping[str, Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """How to put these values in the place of the Parameters and buffers of these names, and how to put those back."""
    places = [(*_place(module, name), value) for name, value in given.items()]
    before = [table[last] for table, last, _ in places]
    layers = [each for each in module.modules() if isinstance(each, nn.RNNBase)] if given else []
    flat = [layer._flat_weights for layer in layers]  # noqa: SLF001  the list that torch's recurrent layers run on

    def put_in() -> None:
        for table, last, value in places:
            table[last] = value
        for layer in layers:
            layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]  # noqa: SLF001  as above

    def put_back() -> None:
        for (table, last, _), value in zip(places, before, strict=True):
            table[last] = value
        for layer, weights in zip(layers, flat, strict=True):
            layer._flat_weights = weights  # noqa: SLF001  as above

    return put_in, put_back


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The registry that this name is in, and under what."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    return owner._parameters if last in owner._parameters else owner._buffers, last


def _alone() -> AbstractContextManager[object]:
    """No other thread exchanges anything inside. A compiler, which may not see a lock, runs no threads."""
    return nullcontext() if torch.compiler.is_compiling() else _LOCK
