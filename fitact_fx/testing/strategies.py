"""The Hypothesis strategies: arbitrary architectures, and batches for one."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from fitact_fx.errors import RecipeError, known
from fitact_fx.kinds import KINDS
from fitact_fx.testing import activations, attention, joins, layers, recurrent, sharing
from fitact_fx.testing.architecture import Architecture
from fitact_fx.testing.step import Choice, Step, options_of
from fitact_fx.testing.writing import Shape

# Sizes by the number of dimensions behind the channels: small ones first, since examples shrink towards the first.
_SIZES = {0: (), 1: (1, 2, 4, 5, 8), 2: (1, 2, 4, 5, 8), 3: (1, 2, 4)}
_CHANNELS = (1, 2, 3, 4, 6)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DEPTH = 2  # containers and blocks within one another


def _defined_in(module: ModuleType) -> list[type[Step]]:
    """The kinds of steps that a module defines, in the order of its lines."""
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Step) and each.__module__ == module.__name__
    ]


# Simple kinds first: examples shrink towards them.
_MODULES = (activations, layers, joins, sharing, attention, recurrent)
STEPS = tuple(kind for module in _MODULES for kind in _defined_in(module))


def architectures(
    *,
    dims: Sequence[int] = (0, 1, 2, 3),
    dtypes: Sequence[torch.dtype] = _DTYPES,
    min_steps: int = 1,
    max_steps: int = 10,
    kinds: Iterable[str] | None = None,
    steps: Iterable[type[Step]] | None = None,
    inplace: bool = True,
    aliasing: bool = True,
    gradients: bool = True,
    max_inputs: int = 3,
) -> SearchStrategy[Architecture]:
    """Arbitrary small networks that run, in evaluation and in training mode, and give finite outputs.

    `dims`: how many dimensions the inputs have behind the channels (0: vectors). `kinds`: names of
    activation kinds, as in `fitact_fx.kinds.KINDS`, for steps that are one activation. `steps`: the kinds of
    steps to use, such as `[Convolution, Activation]` or a class of your own (see `fitact_fx.testing.step`).
    All of them by default.

    `inplace`: activations, dropout and sums may overwrite their input, the model's own inputs included.
    `aliasing`: what is overwritten may still be read under another name: a view, the same value
    later on, the caller's input. `gradients`: the models also run with gradients enabled; without,
    the results of `split`, `chunk` and `unbind` may be overwritten too, which autograd refuses.
    A backward pass may still be refused, as for any model that overwrites values; it never is without `inplace`.

    Examples shrink to few steps of simple kinds on small inputs::

        @given(architectures(kinds=["relu", "gelu"]), st.integers(0, 9))
        def test_hardening_keeps_the_outputs(architecture, seed):
            hard = fitact_fx.harden(architecture.module())
            fitact_fx.set_bounds(hard, {"*": (-torch.inf, torch.inf)})
            expected = architecture.module()(*architecture.inputs(seed=seed))
            torch.testing.assert_close(hard(*architecture.inputs(seed=seed)), expected, rtol=0, atol=0)

    Raises RecipeError for an activation kind that does not exist.
    """
    chosen_kinds = None if kinds is None else tuple(kinds)
    names = [kind.name for kind in KINDS]
    for name in chosen_kinds or ():
        if name not in names:
            raise RecipeError(known("activation kind", name, names))
    choice = Choice(chosen_kinds, inplace)
    of = STEPS if steps is None else tuple(steps)
    step = _steps(of, choice, _DEPTH)
    return st.builds(
        Architecture,
        takes=st.lists(_shapes(dims), min_size=1, max_size=max_inputs).map(tuple),
        steps=st.lists(step, min_size=min_steps, max_size=max_steps).map(tuple),
        dtype=st.sampled_from(tuple(dtypes)),
        form=st.sampled_from(("tensor", "tuple", "list", "dict")),
        outputs=st.integers(1, 3),
        channels_last=st.booleans(),
        seed=st.integers(0, 3),
        aliasing=st.just(aliasing),
        gradients=st.just(gradients),
    )


def batches(architecture: Architecture, *, min_size: int = 2, max_size: int = 4) -> SearchStrategy[tuple[Tensor, ...]]:
    """Inputs for one architecture. A batch of one is for evaluation mode: batch norms that train refuse it."""
    return st.builds(architecture.inputs, batch=st.integers(min_size, max_size), seed=st.integers(0, 100))


def _shapes(dims: Sequence[int]) -> SearchStrategy[Shape]:
    """Shapes without the batch dimension: channels, and sizes behind them."""
    channels = st.sampled_from(_CHANNELS)
    return st.one_of([st.tuples(channels, *(st.sampled_from(_SIZES[dim]) for _ in range(dim))) for dim in dims])


def _steps(kinds: Sequence[type[Step]], choice: Choice, depth: int) -> SearchStrategy[Step]:
    """A step of any of these kinds, each as often as its weight says."""
    allowed = [kind for kind in kinds if depth or not _nested(kind)]
    strategies = [_step(kind, kinds, choice, depth) for kind in allowed for _ in range(kind.weight)]
    # Hypothesis finds simpler what takes fewer choices: here is a step that takes none.
    return st.one_of([*map(st.just, _simplest(allowed, choice)), *strategies])


def _simplest(kinds: Sequence[type[Step]], choice: Choice) -> list[Step]:
    """The first kind with the first of each field's options; an empty list if there are no kinds."""
    return [
        kind(**{each.name: options_of(each, choice)[0] for each in fields(kind) if "options" in each.metadata})
        for kind in kinds[:1]
    ]


def _step(kind: type[Step], kinds: Sequence[type[Step]], choice: Choice, depth: int) -> SearchStrategy[Step]:
    """A step of one kind: each of its fields holds one of its options, or steps of its own."""
    drawn: dict[str, SearchStrategy[Any]] = {}
    for each in fields(kind):
        if "steps" in each.metadata:
            inner = [other for other in kinds if issubclass(other, each.metadata["steps"]())]
            nested = _steps(inner, choice, depth - 1)
            drawn[each.name] = st.lists(nested, max_size=each.metadata["most"]).map(tuple)
        else:
            drawn[each.name] = st.sampled_from(options_of(each, choice))
    return st.builds(kind, **drawn)


def _nested(kind: type[Step]) -> bool:
    return any("steps" in each.metadata for each in fields(kind))
