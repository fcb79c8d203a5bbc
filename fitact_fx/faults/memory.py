"""What faults can hit in a model, by name: parameters, buffers, bounds, and the activations at injection nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import GraphModule

from fitact_fx.errors import FaultError, close_to
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.cells import Cell, activation_cells, tensor_cells, uncompiled
from fitact_fx.faults.formats import Format
from fitact_fx.faults.targets import Target
from fitact_fx.faults.tensor_faults import TensorFaults

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
    storages: frozenset[int]
    lowered: bool = False
    _fitted: dict[str, Shapes] = field(default_factory=dict)  # format -> what was last found to fit
    _unfit: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, target: "nn.Module | Memory") -> "Memory":
        """The memory of a model. FaultError if it holds nothing, or a lazy parameter without a shape."""
        if isinstance(target, Memory):
            return target
        model = uncompiled(target)
        known = _KNOWN.get(model)
        cells: tuple[Cell, ...] = (*tensor_cells(model, {} if known is None else known.names), *activation_cells(model))
        if not cells:
            raise FaultError(f"{type(model).__name__} has no parameters and no bounds: nothing for a fault to hit")
        names = {name: cell for cell in cells for name in cell.names}
        shapes = MappingProxyType({name: cell.shape for name, cell in names.items()})
        storages = frozenset(cell.storage for cell in cells)
        made = cls(
            cells, MappingProxyType(names), shapes, storages, isinstance(model, GraphModule) and "lowered" in model.meta
        )
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
            for one in hits:
                if one.name in target.names and not target.names[one.name].is_unmoved:
                    raise FaultError(f"tensor {one.name!r} was moved, cast or replaced;\n  make the Memory anew")
            target.require(shapes, stored)
            return target
        model = uncompiled(target)
        known = _KNOWN.get(model)
        if known is not None and all(known.has(one.name, model) for one in hits):
            try:
                known.require(shapes, stored)
                return known
            except FaultError:  # for what the model was, perhaps, and is no more
                del _KNOWN[model]
        made = cls.of(model)
        made.require(shapes, stored)
        return made

    def has(self, name: str, model: nn.Module) -> bool:
        """Whether what is called so is still what `model` has under that name."""
        cell = self.names.get(name)
        return cell is not None and cell.is_in(model, name)

    def chosen(self, targets: Sequence[str | Target]) -> tuple[Cell, ...]:
        """The cells that these targets mean, in the model's order. FaultError for one that means none."""
        parsed = [Target.parse(each) for each in targets]
        for target in parsed:
            if not any(target.matches(cell.kind, cell.names) for cell in self.cells):
                raise FaultError(self._nothing(target))
        return tuple(cell for cell in self.cells if any(each.matches(cell.kind, cell.names) for each in parsed))

    def require(self, shapes: Shapes, stored: Format) -> None:
        """FaultError unless each name is there, of that shape, and able to hold numbers of that format."""
        if self._fitted.get(stored.name) is shapes:
            return
        tied = len(self.names) > len(self.cells)
        if not tied and shapes.items() <= self.shapes.items() and self._misfits(stored).isdisjoint(shapes):
            return
        seen: dict[int, str] = {}
        for name, shape in shapes.items():
            cell = self.find(name)
            if not _fits(cell, shape):
                raise FaultError(f"tensor {name!r} has shape {cell.shape}; the fault list is for {shape}")
            misfit = cell.misfit(stored)
            if misfit is not None:
                raise FaultError(f"tensor {name!r} {misfit}")
            other = seen.setdefault(id(cell), name)
            if other != name:  # under two names, the faults of one tensor would undo each other
                raise FaultError(f"tensors {other!r} and {name!r} of the fault list are tied in the model; {_SHARED}")
        self._fitted[stored.name] = shapes

    def require_words(self, hits: Sequence[TensorFaults]) -> None:
        """FaultError where the words that a list means are others than those that are here."""
        for one in hits:
            own = self.names[one.name].own
            if own != one.own:
                means, here = ("those of the list's format" if each is None else each.name for each in (one.own, own))
                raise FaultError(f"tensor {one.name!r}: the list is for words that are {means}; here they are {here}")

    def _misfits(self, stored: Format) -> frozenset[str]:
        """The names of what cannot hold that format; worked out once."""
        if stored.name not in self._unfit:
            unfit = (cell for cell in self.cells if cell.misfit(stored) is not None)
            self._unfit[stored.name] = frozenset(name for cell in unfit for name in cell.names)
        return self._unfit[stored.name]

    def find(self, name: str) -> Cell:
        """The cell of that name; FaultError with close names if there is none."""
        if name not in self.names:
            raise FaultError(f"the model has no tensor {name!r}{close_to(name, self.names)}; {_SHARED}")
        return self.names[name]

    def _nothing(self, target: Target) -> str:
        there = [name for cell in self.cells if cell.kind == target.kind for name in cell.names]
        if there:
            close = close_to(target.glob, there) or f"; they are {', '.join(there[:5])}{', ...' * (len(there) > 5)}"
            return f"the pattern {target.glob!r} matches none of the {target.kind}{close}"
        remedies = {
            "bounds": "calibrate the hardened model, or set its bounds, before drawing faults for them",
            "activations": "give fitact_fx.inject example_inputs, or run what it returned once",
        }
        return f"the model has no {target.kind};\n  {remedies.get(target.kind, 'choose other targets')}"


_KNOWN: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()


def _fits(cell: Cell, shape: tuple[int, ...]) -> bool:
    """A list for fewer inferences than a node expects fits: the others stay clean."""
    if isinstance(cell, ActivationCell) and shape and cell.shape:
        return shape[1:] == cell.shape[1:] and shape[0] <= cell.shape[0]
    return shape == cell.shape
