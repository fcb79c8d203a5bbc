"""Small modules for the tests of the front end, and the comparison that most of them end with."""

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fitact_fx.errors import UncalibratedWarning
from fitact_fx.hardening import harden, set_bounds
from fitact_fx.sites import find_sites
from fitact_fx.tracing import trace

torch.set_num_threads(1)
INFINITE = {"*": (-torch.inf, torch.inf)}


def module(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module with this `forward`; tensors among its parts become buffers."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                    self.register_buffer(name, part)
                else:
                    setattr(self, name, part)

    Small.forward = forward  # type: ignore[method-assign]
    return Small()


def kinds(model: nn.Module) -> dict[str, str]:
    """Site name -> kind, of the traced model."""
    return {site.name: site.kind for site in find_sites(trace(model))}


def run(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> list[Tensor]:
    """The outputs on copies of `inputs`, and those copies as the model left them."""
    own = [each.clone() if isinstance(each, Tensor) else each for each in inputs]
    torch.manual_seed(seed)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        output = model(*own)
    outputs = output if isinstance(output, tuple | list) else [output]
    return [each for each in (*outputs, *own) if isinstance(each, Tensor)]


def bitwise_equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(ours, theirs, strict=True)
    )


def hardened_like(model: nn.Module, *inputs: Any) -> nn.Module:
    """The hardened model with infinite bounds, after checking that it does what the model does, twice over."""
    hard = harden(model)
    infinite = copy.deepcopy(hard)
    set_bounds(infinite, INFINITE)
    for candidate in (hard, infinite):
        reference = copy.deepcopy(model)
        for _ in range(2):
            expected, got = run(reference, inputs), run(candidate, inputs)
            assert bitwise_equal(expected, got), inspect.getsource(type(model).forward)
    return infinite
