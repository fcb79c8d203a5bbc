"""The export front end: `torch.export` runs the model on example inputs, and the graph is of ATen operators.

It follows Python code that depends on shapes and types, for the shapes and types it sees; what it took for
granted about an input is checked whenever the graph runs. Batch size and sequence length stay free where the
model lets them. The graph stands for evaluation mode, and for the types and the device of the examples.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fitact_fx.ambience import random_states_kept
from fitact_fx.errors import TracingError
from fitact_fx.frontends.attention import recorded_along_the_slow_path
from fitact_fx.frontends.comparing import difference
from fitact_fx.frontends.inputs import Inputs, Place
from fitact_fx.frontends.rebuilding import rebuilt
from fitact_fx.ownership import owned_copy
from fitact_fx.signature import CONSTANTS, leaves_of
from fitact_fx.traced import TracedModule


def exported(root: nn.Module, example_inputs: tuple[Any, ...]) -> TracedModule:
    """The graph of `root`, a copy that owns its modules, in evaluation mode, as torch.export sees it on these inputs.

    Raises TracingError with torch's own reason if it cannot be exported, and for a model in training mode.
    """
    if root.training:
        raise TracingError(
            "an exported graph stands for evaluation mode only, and this model is in training mode;\n"
            "  call model.eval() first"
        )
    inputs = Inputs.of(root, example_inputs)
    # Code may change its own buffers and attributes, so whatever runs it runs a copy.
    program, results = _program(root, inputs)
    own = owned_copy(root)
    traced = rebuilt(root, program, inputs, results)
    _require_equal(own, traced, inputs)
    return traced


class _Results:
    """What the model returned, with places for tensors. No list: torch.export puts lists back as they were."""

    value: Any = None


class _Flat(nn.Module):
    """The model from tensors by name to a tuple of tensors; what else it returns is kept in `results`."""

    def __init__(self, model: nn.Module, inputs: Inputs, results: "_Results") -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.results = results

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Any, ...]:
        flat: list[Any] = []

        def take(leaf: Any) -> Any:
            if isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
                flat.append(leaf)
                return Place(str(len(flat) - 1))
            if isinstance(leaf, CONSTANTS):
                return leaf
            raise TracingError(f"forward returns a {type(leaf).__name__}, which a graph cannot make")

        bound = self.inputs.bound(tensors)
        self.results.value = leaves_of(self.model(*bound.args, **bound.kwargs), take)
        return tuple(flat)


def _program(root: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Any]:
    """The exported program with as many free sizes as the model lets it have, and what its results are part of."""
    reason: Exception | None = None
    for shapes in inputs.shapes:
        results = _Results()
        flat = _Flat(owned_copy(root), inputs, results)
        try:
            with (
                random_states_kept(),
                recorded_along_the_slow_path(),
                torch.no_grad(),
                _quiet(),
            ):
                program = torch.export.export(flat, (inputs.tensors,), dynamic_shapes=(shapes,), strict=False)
        except TracingError:
            raise
        except Exception as error:  # noqa: BLE001  torch and the user's code may raise anything: tried again, then told
            reason = reason or error
        else:
            return program, results.value
    text = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    raise TracingError(f"torch.export cannot export this model:\n  {text}") from reason


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns and logs, at length, what its error then says."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _require_equal(root: nn.Module, traced: TracedModule, inputs: Inputs) -> None:
    """The graph must do what the model does on its examples and, if it takes that, on single samples."""
    told = difference(owned_copy(root), owned_copy(traced), inputs.bound(inputs.tensors).args)
    if told:
        raise _other_results("on its example inputs", told)
    for one in inputs.single_samples():
        try:
            told = difference(owned_copy(root), owned_copy(traced), inputs.bound(one).args)
        except TracingError:  # the model takes no single sample, or this graph one batch size only, and says so
            return
        if told:
            raise _other_results("on a single sample", told)


def _other_results(on_what: str, told: str) -> TracingError:
    return TracingError(
        f"the exported graph does not give the model's own results {on_what}: {told};\n"
        "  decide on shapes in __init__ and not in forward, and register what forward keeps as a buffer"
    )
