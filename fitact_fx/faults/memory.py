"""What faults can hit in a model, by name: parameters, buffers, bounds, and the activations at injection nodes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fitact_fx.bounded import SIDES, Bounded
from fitact_fx.errors import FaultError
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.formats import Format
from fitact_fx.faults.targets import Target
from fitact_fx.faults.tensor_cell import COMPILED, TensorCell, place_of
from fitact_fx.faults.tensor_faults import TensorFaults
from fitact_fx.injected import Injected

Cell = TensorCell | ActivationCell
Shapes = Mapping[str, tuple[int, ...]]

_SHARED = "draw the list on this model, or keep what both have with faults.restricted_to(model)"


@dataclass(frozen=True, eq=False)
class Memory:
    """All that can be hit in one model: the very tensors, and the injection nodes.

    Made once, it can stand for the model in many trials; make it anew after moving the model, casting
    it, setting its bounds, writing to its weights or replacing one of its parts.

    `cells` holds everything once, in the model's order; `names` leads to it from every name it has.
    """

    cells: tuple[Cell, ...]
    names: Mapping[str, Cell]
    shapes: Shapes
    places: frozenset[tuple[object, ...]]
    _unfit: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, target: "nn.Module | Memory") -> "Memory":
        """The memory of a model. FaultError if it holds nothing, or a lazy parameter without a shape."""
        if isinstance(target, Memory):
            return target
        model = _uncompiled(target)
        cells: tuple[Cell, ...] = (*_tensor_cells(model), *_activation_cells(model))
        if not cells:
            raise FaultError(f"{type(model).__name__} has no parameters and no bounds: nothing for a fault to hit")
        names = {name: cell for cell in cells for name in cell.names}
        shapes = MappingProxyType({name: cell.shape for name, cell in names.items()})
        made = cls(cells, MappingProxyType(names), shapes, frozenset(cell.place for cell in cells))
        _KNOWN[model] = made
        return made

    @classmethod
    def fitting(
        cls, target: "nn.Module | Memory", shapes: Shapes, hits: Sequence[TensorFaults], stored: Format
    ) -> "Memory":
        """The memory of a model, which has all of `shapes` and can hold that format; FaultError otherwise.

        Remembered from last time, if what is hit is still in its place.
        """
        if isinstance(target, Memory):
            target.require(shapes, stored)
            return target
        model = _uncompiled(target)
        known = _KNOWN.get(model)
        if known is not None and known.is_current(model, hits):
            try:
                known.require(shapes, stored)
                return known
            except FaultError:  # for what the model was, perhaps, and is no more
                del _KNOWN[model]
        made = cls.of(model)
        made.require(shapes, stored)
        return made

    def is_current(self, model: nn.Module, hits: Sequence[TensorFaults]) -> bool:
        """Whether the model still has what is hit, where it was; scales are worked out anew."""
        for one in hits:
            cell = self.names.get(one.name)
            if cell is None or not cell.is_current(model, one.name):
                return False
            cell.forget()
        return True

    def chosen(self, targets: Sequence[str | Target]) -> tuple[Cell, ...]:
        """The cells that these targets mean, in the model's order. FaultError for one that means none."""
        parsed = [Target.parse(each) for each in targets]
        for target in parsed:
            if not any(target.matches(cell.kind, cell.names) for cell in self.cells):
                raise FaultError(self._nothing(target))
        return tuple(cell for cell in self.cells if any(each.matches(cell.kind, cell.names) for each in parsed))

    def require(self, shapes: Shapes, stored: Format) -> None:
        """FaultError unless each name is there, of that shape, and able to hold numbers of that format."""
        untied = len(self.names) == len(self.cells)
        if untied and shapes.items() <= self.shapes.items() and self._misfits(stored).isdisjoint(shapes):
            return
        for name, shape in shapes.items():
            cell = self.find(name)
            if not _fits(cell, shape):
                raise FaultError(f"tensor {name!r} has shape {cell.shape}; the fault list is for {shape}")
            misfit = cell.misfit(stored)
            if misfit is not None:
                raise FaultError(f"tensor {name!r} {misfit}")
        self._refuse_tied(shapes)

    def _refuse_tied(self, shapes: Shapes) -> None:
        """A tied tensor has one name in a list; under two, its faults would undo each other."""
        seen: dict[int, str] = {}
        for name in shapes:
            other = seen.setdefault(id(self.names[name]), name)
            if other != name:
                raise FaultError(f"tensors {other!r} and {name!r} of the fault list are tied in the model; {_SHARED}")

    def _misfits(self, stored: Format) -> frozenset[str]:
        """The names of what cannot hold that format; worked out once."""
        if stored.name not in self._unfit:
            unfit = (cell for cell in self.cells if cell.misfit(stored) is not None)
            self._unfit[stored.name] = frozenset(name for cell in unfit for name in cell.names)
        return self._unfit[stored.name]

    def find(self, name: str) -> Cell:
        """The cell of that name; FaultError with close names if there is none."""
        if name not in self.names:
            raise FaultError(f"the model has no tensor {name!r}{_close(name, self.names)}; {_SHARED}")
        return self.names[name]

    def _nothing(self, target: Target) -> str:
        there = [name for cell in self.cells if cell.kind == target.kind for name in cell.names]
        if there:
            close = _close(target.glob, there) or f"; they are {', '.join(there[:5])}{', ...' * (len(there) > 5)}"
            return f"the pattern {target.glob!r} matches none of the {target.kind}{close}"
        remedies = {
            "bounds": "calibrate the hardened model, or set its bounds, before drawing faults for them",
            "activations": "give fitact_fx.inject example_inputs, or run what it returned once",
        }
        return f"the model has no {target.kind};\n  {remedies.get(target.kind, 'choose other targets')}"


_KNOWN: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()


def _close(name: str, names: Sequence[str] | Mapping[str, Cell]) -> str:
    close = get_close_matches(name, names)
    return f" (close: {', '.join(close)})" if close else ""


def _fits(cell: Cell, shape: tuple[int, ...]) -> bool:
    """A list for fewer inferences than a node expects fits: the others stay clean."""
    if isinstance(cell, ActivationCell) and shape and cell.shape:
        return shape[1:] == cell.shape[1:] and shape[0] <= cell.shape[0]
    return shape == cell.shape


def _uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile wraps, under whose own names everything is."""
    if not isinstance(model, nn.Module):
        raise FaultError(f"faults hit an nn.Module; got a {type(model).__name__}")
    inner = model._modules.get(COMPILED)
    return model if inner is None else _uncompiled(inner)


def _tensor_cells(model: nn.Module) -> Iterator[TensorCell]:
    found: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    names: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for kind, name, tensor in _named_tensors(model):
        if is_lazy(tensor):
            raise FaultError(f"tensor {name!r} has no shape yet; run the model once before drawing faults")
        place = place_of(tensor)
        found.setdefault(place, (kind, tensor))
        names[place].append(name.replace(f"{COMPILED}.", ""))
    for place, (kind, tensor) in found.items():
        every = tuple(names[place])
        yield TensorCell(min(every), kind, every, tensor, tuple(tensor.shape), tensor.dtype, place)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield "parameters", name, parameter
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            kind = "bounds" if isinstance(module, Bounded) and name in SIDES else "buffers"
            # What is not saved is made again by the code, or by tracing: variants of a model do not share it.
            if buffer is not None and name not in module._non_persistent_buffers_set and _holds_numbers(buffer):
                yield kind, f"{path}.{name}" if path else name, buffer


def _holds_numbers(buffer: Tensor) -> bool:
    """Whether a network computes with it: counters, indices and masks are kept in other types."""
    return buffer.numel() > 0 and (buffer.is_floating_point() or buffer.dtype == torch.int8)


def _activation_cells(model: nn.Module) -> Iterator[ActivationCell]:
    for module in model.modules():
        if isinstance(module, Injected) and module.shape is not None:
            yield ActivationCell(module, module.shape)
