"""Which values of a graph what can be hit goes into first."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from fitact_fx.campaigns.suffix.slices import as_set
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.raw_words import span_of
from fitact_fx.guarded import GUARDED
from fitact_fx.injected import Injected
from fitact_fx.nodes import called_module, owning_module

Held = Tensor | Injected


def attribute(node: Node) -> Callable[[], Any]:
    """What gives what a get_attr node stands for."""
    path, _, name = str(node.target).rpartition(".")
    owner = owning_module(node).get_submodule(path)
    return lambda: getattr(owner, name)


def held_by(node: Node) -> tuple[Held, ...]:
    """The tensors that a node reads from the model, and the injection nodes that it calls."""
    if node.op not in ("get_attr", "call_module"):
        return ()
    held = called_module(node) if node.op == "call_module" else attribute(node)()
    if not isinstance(held, nn.Module):
        return tuple(_tensors([held]))
    guarded: Mapping[str, object] = node.kwargs.get(GUARDED, {})  # type: ignore[assignment]
    # It runs on other values in the place of these, which come from nodes of their own.
    return tuple(_in_modules(held, {id(held.get_parameter(name)) for name in guarded}))


def _in_modules(held: nn.Module, left_out: Collection[int]) -> Iterator[Held]:
    for module in held.modules():
        if isinstance(module, Injected):
            yield module
        values = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        yield from (each for each in _tensors(values) if id(each) not in left_out)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (each for each in tree_leaves(value) if isinstance(each, Tensor))


def touched(model: GraphModule, held: Sequence[Iterable[Held]]) -> dict[str, int]:
    """Name of what can be hit -> the values whose steps read it, or memory that it lies in."""
    reading: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number, those in enumerate(held):
        for each in those:
            place, *span = _place(each)
            reading[place].append((number, span[0], span[1]))
    touched = {}
    for name, cell in Memory.of(model).names.items():
        place, start, end = _place(cell.node if isinstance(cell, ActivationCell) else cell.tensor)
        touched[name] = as_set({number for number, first, last in reading[place] if first < end and start < last})
    return touched


def _place(held: Held) -> tuple[int, int, int]:
    """The memory that something lies in, and from where to where."""
    if not isinstance(held, Tensor) or held.layout != torch.strided or not held.data_ptr():
        return id(held), 0, 1
    start = held.data_ptr()
    return held.untyped_storage().data_ptr(), start, start + span_of(held) * held.element_size()
