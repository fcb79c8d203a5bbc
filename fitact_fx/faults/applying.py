"""A fault list into a model and out again: all of it or nothing, and one list at a time."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from threading import Lock
from types import TracebackType

from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.memory import Memory, Shapes
from fitact_fx.faults.tensor_cell import Undo
from fitact_fx.faults.tensor_faults import TensorFaults

# What is in use. Variants of a model share parameters, so to mark the model would not be enough.
_claims: list[Memory] = []
_claiming = Lock()


class Applied(AbstractContextManager[None]):
    """Inside, the model holds the faults; behind, however it is left, exactly what it held before.

    FaultError on the way in, with nothing changed, if the list does not fit or if some faults are already applied
    there. A class and not a generator: what it costs to come and go is most of what a single fault costs.
    """

    def __init__(
        self, model: nn.Module | Memory, shapes: Shapes, stored: Format, effect: Effect, hits: Sequence[TensorFaults]
    ) -> None:
        self.model, self.shapes = model, shapes
        self.stored, self.effect, self.hits = stored, effect, hits
        self.undo: list[Undo] = []
        self.done: list[Undo] = []
        self.disturbed: list[str] | None = None
        self.claimed: Memory | None = None

    def __enter__(self) -> None:
        memory = Memory.fitting(self.model, self.shapes, self.hits, self.stored)
        memory.require_words(self.hits)
        if self.claimed is not None:
            raise _already(memory.cells[0].name)
        try:
            self._claim(memory)
            for faults in self.hits:
                memory.names[faults.name].hit(self.stored, self.effect, faults, self.undo)
            for one in self.undo:
                one.applied()
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def changed(self) -> tuple[str, ...]:
        """Inside: the names of what is not, bit for bit, what it was; a fault may hit a bit that is so already."""
        return tuple(one.name for one in self.undo if one.changes)

    def _claim(self, memory: Memory) -> None:
        with _claiming:
            for claim in _claims:
                if not claim.storages.isdisjoint(memory.storages):
                    raise _already(next(cell.name for cell in memory.cells if cell.storage in claim.storages))
            self.claimed = memory
            _claims.append(memory)

    def _leave(self) -> None:
        """Undo everything, last first, however often that is interrupted; what went wrong is told when it is done."""
        raised: BaseException | None = None
        while self.undo or self.claimed is not None:
            try:
                self._undo_all()
                self._give_back()
            except Exception as error:  # noqa: BLE001  this one cannot be undone, and is told below; the others can
                raised = raised or error
                self.undo.pop()
            except BaseException as error:  # noqa: BLE001  an interrupt: what it broke off is done once more
                raised = raised or error
        done, disturbed = self.done, self.disturbed or []
        self.done, self.disturbed = [], None
        if raised is not None:
            raise raised
        if disturbed:
            raise FaultError(disturbed[0])
        for one in done:
            one.settle()

    def _undo_all(self) -> None:
        """Can be broken off anywhere and called again: undoing twice does no harm."""
        if self.disturbed is None:  # asked before our own writes
            self.disturbed = [why for one in self.undo if (why := one.disturbed()) is not None]
        while self.undo:
            self.undo[-1].undo()
            self.done.append(self.undo[-1])
            self.undo.pop()

    def _give_back(self) -> None:
        with _claiming:
            _claims[:] = [claim for claim in _claims if claim is not self.claimed]
        self.claimed = None


def _already(tensor: str) -> FaultError:
    return FaultError(
        f"faults are already applied to this model (tensor {tensor!r}); "
        "leave that `with faults.applied(...)` block before entering another"
    )
