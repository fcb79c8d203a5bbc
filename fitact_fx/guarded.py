"""What the guard of a model's parameters puts into its graph: limits that each parameter passes before it is used.

    y = conv1(x)    ->    weight = limits.conv1.weight(conv1.weight)     # outside its limits, an element is 0
                          y = conv1(x, guarded_parameters={"weight": weight})

The call stays the module's own: an `Exchange`, a pair of hooks, lets it run on these values in the place of its
Parameters, and puts those back behind it. So hooks, names, `state_dict` and the module itself stay what they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from fitact_fx.limits import Limits
from fitact_fx.unseen import UnseenCode

GUARDED = "guarded_parameters"
"""The keyword under which a called module gets values for its Parameters, by name."""

_LOCK = Lock()  # held while tensors change places, and not while a module runs


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
