"""Whether a graph gives what the model gives: for front ends that cannot know it from how the graph was made."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fitact_fx.ambience import random_states_kept, slow_path
from fitact_fx.errors import ExampleError, FitactError
from fitact_fx.signature import leaves_of

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far two outputs may lie apart, relative to their greatest value: an exported graph rounds differently."""
_OF_HALF_TYPES = 0.02


def difference(model: Callable[..., Any], graph: Callable[..., Any], arguments: tuple[Any, ...]) -> str | None:
    """What is different in the results of both, called twice on copies of these arguments; None if nothing is."""
    if any(each.is_meta for each in pytree.tree_leaves(arguments) if isinstance(each, Tensor)):
        return None  # nothing has a value
    try:
        theirs = _results(model, arguments)
    except Exception as error:  # user code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExampleError(f"the model does not take {_described(arguments)}:\n  {reason}") from error
    try:
        ours = _results(graph, arguments)
    except FitactError:  # the graph says itself what it does not stand for
        raise
    except Exception as error:  # noqa: BLE001  whatever torch raises where the model raised nothing
        return f"{type(error).__name__}, {(str(error).strip() or 'no message').splitlines()[0]}"
    if len(ours) != len(theirs):
        return f"{len(ours)} values in place of {len(theirs)}"
    return next((told for pair in zip(ours, theirs, strict=True) if (told := _different(*pair))), None)


def _described(arguments: tuple[Any, ...]) -> str:
    """`(1, 3, 9, 9) float32 and None`."""
    told = [
        f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" if isinstance(each, Tensor) else repr(each)
        for each in arguments
    ]
    return " and ".join(told)


def _results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    # torch.fx prints where a graph failed, which the caller tells in an error of its own.
    with random_states_kept(), slow_path(), torch.no_grad(), redirect_stderr(io.StringIO()):
        for _ in range(2):  # what the first call leaves behind shows in the second
            own = pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, arguments)
            torch.manual_seed(0)
            leaves_of(function(*own), flat.append)
    return flat


def _different(ours: Any, theirs: Any) -> str | None:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return None if type(ours) is type(theirs) and ours == theirs else f"{ours!r} in place of {theirs!r}"
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return f"{tuple(ours.shape)} {ours.dtype} in place of {tuple(theirs.shape)} {theirs.dtype}"
    if not theirs.is_floating_point() or not theirs.numel():
        return None if torch.equal(ours, theirs) else "other whole numbers"
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return "NaN or infinity in other places"
    one, other = (each.detach().double().nan_to_num(0.0, 0.0, 0.0) for each in (ours, theirs))
    apart = float((one - other).abs().max())
    allowed = _TOLERANCES.get(theirs.dtype, _OF_HALF_TYPES) * float(other.abs().max()) + 1e-7
    return f"values that are {apart:.3g} apart" if apart > allowed else None
