"""What the guard of a model's parameters puts into its graph: limits that each parameter passes before it is used.

    y = conv1(x)    ->    weight = limits.conv1.weight(conv1.weight)     # outside its limits, an element is 0
                          y = conv1(x, guarded_parameters={"weight": weight})

The call stays the module's own: an `Exchange`, a pair of hooks, lets it run on these values in the place of its
Parameters, and puts those back behind it. So hooks, names, `state_dict` and the module itself stay what they were.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fitact_fx.errors import SiteError
from fitact_fx.exchanging import exchange_of, place_of
from fitact_fx.parameter_limits import Limits, can_be_asked
from fitact_fx.unseen import UnseenCode
from fitact_fx.writes import Seen, only_reads

GUARDED = "guarded_parameters"
"""The keyword under which a called module gets values for its Parameters, by name."""

_LOCK = Lock()  # held while tensors change places, and not while a module runs


class Exchange:
    """Lets a module run on guarded values in the place of its Parameters; called without any, it runs on those.

    A value that is the Parameter itself changes nothing. Several threads may call a module at the same time; its
    Parameters are back when the last of them is done.
    """

    def __init__(self) -> None:
        self.own: list[_Call | None] = []  # a stack: a module may be called inside of its own call
        self.names: dict[str, str] = {}
        self.compared = False  # whether the contents were, once: what is written at each run shows in the first

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the values out of the call's arguments, and put them where the module looks for its Parameters."""
        given: dict[str, Tensor] = kwargs.pop(GUARDED, {})
        if not torch.compiler.is_compiling() and _are_its_own(module, given) and only_reads(module, _is_exchange):
            self.own.append(None)
            return args, kwargs
        root = module.root if isinstance(module, UnseenCode) else module
        seen = self._prepared(root, given)
        with _alone():
            put_in, put_back = exchange_of(root, given)
            self.own.append(_Call(put_back, seen, _handled()))  # first, as an interrupt may come next
            put_in()
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Put the Parameters back, also if the module raised; SiteError if it wrote to one."""
        with _alone():
            if not self.own:  # nothing is to be put back if somebody else's hook raised before ours ran
                return
            call = self.own[-1]
            try:
                written = None
                if call is not None and call.ran_to_its_end():
                    self.compared = self.compared or bool(call.seen)
                    written = next((each.name for each in call.seen if each.was_written()), None)
            finally:
                self.end()
        if written is not None:
            raise SiteError(self._told(module, written))

    def _told(self, module: nn.Module, written: str) -> str:
        name = self.names[written]
        path = name.removesuffix(written).removesuffix(".")
        kind = type(module.root if isinstance(module, UnseenCode) else module).__name__
        where = f"module {path!r} ({kind})" if path else f"the model itself ({kind})"
        return (
            f"parameter {name}: the model writes to it when it runs, in {where} or its hooks, and its limits are those "
            "of before;\n  keep what a run changes in a buffer, or change it between runs and guard anew"
        )

    def end(self) -> None:
        """Put back what the newest call has exchanged, and forget that call."""
        call = self.own[-1]
        if call is not None:
            call.put_back()
        self.own.pop()  # last, as an interrupt may come before: `stop` puts back what is still there

    def _prepared(self, root: nn.Module, given: Mapping[str, Tensor]) -> tuple[Seen, ...]:
        """Let the values be like the Parameters that they stand for, and note what they are."""
        if torch.compiler.is_compiling():
            return ()
        seen = []
        for name, value in given.items():
            place = table, last = place_of(root, name)
            own = table[last]
            if value is not own:
                _stand_in(value, own)
            if can_be_asked(own):
                # To compare contents costs a copy and a pass over it: once, and where a fault is.
                whole = not self.compared or (value.is_cpu and value is not own)
                seen.append(Seen.of(name, place, value, whole=whole))
        return tuple(seen)

    @staticmethod
    def stop(model: nn.Module) -> None:
        """Put all Parameters back in modules that were interrupted, for which torch does not call hooks."""
        for module in model.modules():
            for exchange in _exchanges(module):
                with _alone():
                    while exchange.own:
                        exchange.end()

    @staticmethod
    def drop(module: nn.Module) -> None:
        """Let this module take none any more."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if _is_exchange(hook)]:
                del hooks[number]

    @classmethod
    def let(cls, module: nn.Module, names: Mapping[str, str]) -> None:
        """Let this module take guarded values for its Parameters; `names` are those that these have in the model."""
        if not takes_guarded(module):
            exchange = cls()
            # First and last: the user's own hooks see the values that the module runs on.
            module.register_forward_pre_hook(exchange.before, with_kwargs=True, prepend=True)
            module.register_forward_hook(exchange.after, always_call=True)
        for exchange in _exchanges(module):
            exchange.names |= names


def _stand_in(value: Any, parameter: Any) -> None:
    """Let a value be what the model's own code takes for this Parameter."""
    if type(parameter) not in (Tensor, nn.Parameter) and type(value) is Tensor:
        value.__class__ = type(parameter)
    vars(value).update(vars(parameter))
    value._is_param = True  # noqa: SLF001  by which torch tells a Parameter


class _Call(NamedTuple):
    """What a call of a module has exchanged, and the exception that was being handled when it began."""

    put_back: Callable[[], None]
    seen: tuple[Seen, ...]
    handled: BaseException | None

    def ran_to_its_end(self) -> bool:
        """Whether the module did not raise: if it did, that is what the user is to hear of, and not what it wrote.

        torch calls the hook behind a call while it handles what the module raised; an exception that the caller was
        handling was there before. The output tells nothing: a module may well return None.
        """
        return _handled() is self.handled


def _handled() -> BaseException | None:
    return None if torch.compiler.is_compiling() else sys.exception()


def _are_its_own(module: nn.Module, given: Mapping[str, Tensor]) -> bool:
    """Whether the values are the module's Parameters, so that there is nothing to exchange."""
    return all(module._parameters.get(name) is value for name, value in given.items())


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


def _alone() -> AbstractContextManager[object]:
    """No other thread exchanges anything inside. A compiler, which may not see a lock, runs no threads."""
    return nullcontext() if torch.compiler.is_compiling() else _LOCK
