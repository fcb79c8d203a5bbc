"""What an exported graph takes for granted about its inputs, checked whenever it runs."""

import re
from typing import NamedTuple

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


def _fits(value: object, taken: Taken) -> bool:
    return isinstance(value, Tensor) and value.dtype == taken.dtype and value.ndim == taken.rank


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"one of {value.dtype} with {value.ndim}"
