"""Example inputs: which tensors a model's arguments hold, and where; everything else in them is fixed."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from fitact_fx.errors import ExampleError, TracingError
from fitact_fx.guards import Taken
from fitact_fx.signature import CONSTANTS, leaves_of, made


def bound_arguments(model: nn.Module, example_inputs: tuple[Any, ...]) -> inspect.BoundArguments:
    """Which argument of the model's `forward` each of these is; TracingError if it does not take them."""
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*example_inputs)
    except TypeError as error:
        raise ExampleError(
            f"forward does not take these example inputs: {error};\n"
            f"  give a tuple of positional inputs for {type(model).__name__}.forward{signature}"
        ) from error


class Place:
    """Where a tensor stands, by name."""

    def __init__(self, name: str) -> None:
        self.name = name


def filled(value: Any, tensors: Mapping[str, Any]) -> Any:
    """`value` with these in place of its places."""
    return leaves_of(value, lambda leaf: tensors[leaf.name] if isinstance(leaf, Place) else leaf)


class Inputs:
    """The model's arguments: which tensors the graph takes, and where in the arguments they stand."""

    def __init__(self, signature: inspect.Signature, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.signature = signature
        self.arguments = arguments
        self.tensors = tensors

    @classmethod
    def of(cls, model: nn.Module, example_inputs: tuple[Any, ...]) -> "Inputs":
        bound = bound_arguments(model, example_inputs)
        tensors: dict[str, Tensor] = {}
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            arguments[name] = leaves_of(value, lambda leaf, name=name: _leaf(leaf, name, tensors))  # type: ignore[misc]
        return cls(bound.signature, arguments, _with_two_samples(tensors))

    @property
    def taken(self) -> tuple[Taken, ...]:
        """What the graph takes for granted of each tensor."""
        return tuple(Taken(name, each.dtype, each.ndim) for name, each in self.tensors.items())

    def bound(self, tensors: Mapping[str, Any]) -> inspect.BoundArguments:
        """The arguments of one call with these tensors in their places."""
        return inspect.BoundArguments(
            self.signature, {name: made(filled(value, tensors)) for name, value in self.arguments.items()}
        )

    def single_samples(self) -> Iterator[dict[str, Tensor]]:
        """The tensors with one sample each, for every sample there is; floating point ones also the other way round."""
        samples = next((len(tensor) for tensor in self.tensors.values() if tensor.ndim), 0)
        for at in range(min(samples, 4)):
            one = {
                name: each[at : at + 1] if each.ndim and len(each) == samples else each
                for name, each in self.tensors.items()
            }
            yield one
            yield {name: -each if each.is_floating_point() else each for name, each in one.items()}

    @property
    def shapes(self) -> list[dict[str, dict[int, Any]]]:
        """Which sizes to leave free, the most first: batch and sequence, the batch alone, none."""
        batch = {name: {0: Dim.AUTO} if tensor.ndim else {} for name, tensor in self.tensors.items()}
        sequence = {
            name: {**batch[name], **({1: Dim.AUTO} if _has_sequence(tensor) else {})}
            for name, tensor in self.tensors.items()
        }
        none: dict[str, dict[int, Any]] = {name: {} for name in self.tensors}
        return [sequence, batch, none] if sequence != batch else [batch, none]


def _leaf(value: Any, argument: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = argument if argument not in tensors else f"{argument}_{len(tensors)}"
        # Of its own: torch.export takes one tensor in two places for one input.
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return Place(name)
    if isinstance(value, CONSTANTS):
        return value
    raise TracingError(
        f"argument {argument!r} of the example inputs holds a {type(value).__name__};\n"
        "  give tensors, numbers, strings and None, in tuples, lists, dicts and dataclasses"
    )


def _has_sequence(tensor: Tensor) -> bool:
    """Token numbers and masks (N, T), and embedded tokens (N, T, F), have a length that should stay free."""
    return tensor.ndim == 2 if not tensor.is_floating_point() else tensor.ndim == 3


def _with_two_samples(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.export takes a size of 1 for a constant, so a single sample is given twice."""
    first = next((tensor for tensor in tensors.values() if tensor.ndim), None)
    if first is None or len(first) != 1:
        return tensors
    return {
        name: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor
        for name, tensor in tensors.items()
    }
