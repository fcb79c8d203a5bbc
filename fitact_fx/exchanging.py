"""Other values in the places of a module's Parameters and buffers, for as long as it runs on them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def exchange_of(module: nn.Module, given: Mapping[str, Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """How to put these values in the place of the Parameters and buffers of these names, and how to put those back."""
    every = [(*place_of(module, name), value) for name, value in given.items()]
    places = [(table, last, value) for table, last, value in every if table[last] is not value]
    before = [table[last] for table, last, _ in places]
    layers = [each for each in module.modules() if isinstance(each, nn.RNNBase)] if places else []
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


def place_of(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The registry that this name is in, and under what."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path) if path else module
    return owner._parameters if last in owner._parameters else owner._buffers, last
