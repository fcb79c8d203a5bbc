"""What an exported graph takes for granted about its inputs, checked whenever it runs."""

import builtins
import marshal
import math
import re
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fitact_fx.ambience import DEVICES
from fitact_fx.errors import TracingError

_REMEDY = "trace or harden again with example_inputs of such shapes, with two samples or more"


class Taken(NamedTuple):
    """An input as it was when the graph was exported."""

    name: str
    dtype: torch.dtype
    rank: int


class InputGuards(nn.Module):
    """Raises TracingError for inputs of other types or shapes than the graph stands for.

    `guards` is torch.export's own check of sizes, which goes on alone when the graph is compiled.
    """

    def __init__(self, guards: nn.Module, inputs: tuple[Taken, ...]) -> None:
        super().__init__()
        self.guards = guards
        self.inputs = inputs
        self.autocast = {device: torch.is_autocast_enabled(device) for device in DEVICES}
        self._is_impure = True  # its call has no result, and is not dead

    def forward(self, *inputs: Tensor) -> None:
        for device, enabled in self.autocast.items():
            if torch.is_autocast_enabled(device) != enabled:
                raise TracingError(
                    f"this graph was exported with autocast {'on' if enabled else 'off'}, for the types that values "
                    f"have then;\n  run it so, or trace or harden again {'without' if enabled else 'under'} autocast"
                )
        if torch.compiler.is_compiling():
            self.guards(*inputs)
            return
        for value, taken in zip(inputs, self.inputs, strict=True):
            if not _fits(value, taken):
                raise TracingError(
                    f"this graph was exported for {taken.name} as a {taken.dtype} tensor with {taken.rank} dimensions, "
                    f"and gets {_described(value)};\n  {_REMEDY}"
                )
        try:
            self.guards(*inputs)
        except AssertionError as error:
            told = re.sub(r"tensors\['(\w+)'\]", r"\1", str(error).removeprefix("Guard failed: "))
            raise TracingError(
                f"the inputs have other shapes than this graph was exported for: it needs {told};\n  {_REMEDY}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """torch.export's check is a function that it generated: its code is all there is to pickle."""
        modules = {name: module for name, module in self._modules.items() if name != "guards"}
        attributes = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**attributes, "_modules": modules, "check": marshal.dumps(_generated(self.guards))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = {name: value for name, value in state.items() if name != "check"}
        super().__setstate__(attributes)  # type: ignore[no-untyped-call]
        # Whoever unpickles a model runs what it holds anyway.
        self.guards = _guards_of(marshal.loads(state["check"]))  # noqa: S302


def _generated(guards: nn.Module) -> CodeType:
    wrapped: Any = guards.forward
    cells = zip(wrapped.__code__.co_freevars, wrapped.__closure__ or (), strict=True)
    function = {name: cell.cell_contents for name, cell in cells}.get("func", wrapped)
    assert isinstance(function, FunctionType)
    return function.__code__


def _guards_of(code: CodeType) -> nn.Module:
    """As torch.export makes its module of checks."""
    from torch._dynamo import dont_skip_tracing
    from torch.export._unlift import GuardsFn
    from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

    guards: Any = GuardsFn()
    names = {**SYMPY_INTERP, "math": math, "inf": math.inf, "__builtins__": vars(builtins)}
    guards.forward = dont_skip_tracing(FunctionType(code, names))
    guards._is_impure = True  # noqa: SLF001  torch's own name: its call has no result, and is not dead
    return guards.eval()  # type: ignore[no-any-return]


def _fits(value: object, taken: Taken) -> bool:
    return isinstance(value, Tensor) and value.dtype == taken.dtype and value.ndim == taken.rank


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"one of {value.dtype} with {value.ndim}"
