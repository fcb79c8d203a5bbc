"""Faults into the activation at an injection node: they are loaded into the node and hit when the model runs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.tensor_cell import Undo
from fitact_fx.faults.tensor_faults import TensorFaults
from fitact_fx.injected import Injected


@dataclass(frozen=True, eq=False)
class ActivationCell:
    """One injection node, which knows the shape of the activations that come by."""

    node: Injected
    shape: tuple[int, ...]

    kind = "activations"
    own = None  # it is thought of as stored in the format that is asked for

    @property
    def name(self) -> str:
        """`layer1.0.relu@after`: the place in the model, and on which side of its bound."""
        return self.node.name

    @property
    def names(self) -> tuple[str, ...]:
        """It has one name only."""
        return (self.name,)

    @property
    def storage(self) -> int:
        """Equal for cells over the same node."""
        return id(self.node)

    def misfit(self, stored: Format) -> str | None:
        """Why faults in that format cannot be injected here; None if they can."""
        own = self.node.format
        if own == stored:
            return None
        return (
            f"gets faults in {own.name} and not in {stored.name}; "
            f"draw with format={own.name!r}, or inject with format={stored.name!r}"
        )

    def is_in(self, model: nn.Module, name: str) -> bool:
        """Whether the node still expects activations of this shape."""
        return self.is_unmoved

    @property
    def is_unmoved(self) -> bool:
        """Whether the node still expects activations of this shape."""
        return self.node.shape == self.shape

    def hit(self, stored: Format, effect: Effect, faults: TensorFaults, undo: list[Undo]) -> None:
        """Load the faults in the place of those that are there; what is added to `undo` loads those again."""
        masks = faults.masks(effect, stored.bits)
        keep = -1 if masks.clear is None else ~masks.clear
        rows = np.empty((len(faults.shape) + 2, len(masks.flip)), np.int64)
        rows[:-2] = np.unravel_index(masks.elements, faults.shape)
        rows[-2], rows[-1] = keep, masks.flip
        undo.append(HitNode(self.node, self.node.loaded, self.node.clears))
        self.node.load(torch.from_numpy(rows), masks.clear is not None)


class HitNode:
    """How to load again what was loaded in one node."""

    def __init__(self, node: Injected, loaded: Tensor, clears: bool) -> None:
        self.node, self.loaded, self.clears = node, loaded, clears

    @property
    def name(self) -> str:
        """The node's."""
        return self.node.name

    @property
    def changes(self) -> bool:
        """What is hit shows only when the model runs."""
        return self.node.hits > 0

    def applied(self) -> None:
        """Nothing to note: only a list changes what is loaded."""

    def disturbed(self) -> None:
        """Never: an activation does not stay."""

    def undo(self) -> None:
        """Load what was there."""
        self.node.load(self.loaded, self.clears)

    def settle(self) -> None:
        """Nothing is left to do."""
