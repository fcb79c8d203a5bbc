"""A fault list into a model and out again: all of it or nothing, and one list at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from types import TracebackType

from fitact_fx.errors import FaultError
from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.tensor_faults import TensorFaults

# What is in use, as sets of ids: variants of a model share parameters, so to mark the model would not be enough.
_claims: list[frozenset[int]] = []
_claiming = Lock()


class Applied(AbstractContextManager[None]):
    """Inside, `memory` holds the faults; behind, however it is left, exactly what it held before.

    FaultError, with nothing changed, if some are already applied there. A class and not a generator: what it
    costs to come and go is most of what a single fault costs.
    """

    def __init__(self, memory: Memory, stored: Format, effect: Effect, hits: Sequence[TensorFaults]) -> None:
        self.memory, self.stored, self.effect, self.hits = memory, stored, effect, hits
        self.undo: list[Callable[[], None]] = []
        self.claimed = False

    def __enter__(self) -> None:
        try:
            self._claim()
            for faults in self.hits:
                self.memory.names[faults.name].hit(self.stored, self.effect, faults, self.undo)
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _claim(self) -> None:
        with _claiming:
            for claim in _claims:
                if not claim.isdisjoint(self.memory.identities):
                    taken = next(cell.name for cell in self.memory.cells if cell.identity in claim)
                    raise FaultError(
                        f"faults are already applied to this model (tensor {taken!r}); "
                        "leave that `with faults.applied(...)` block before entering another"
                    )
            self.claimed = True
            _claims.append(self.memory.identities)

    def _leave(self) -> None:
        """Undo everything, last first; what goes wrong with one tensor is told after the others are whole again."""
        failed: BaseException | None = None
        while self.undo:
            try:
                self.undo[-1]()
            except BaseException as error:  # noqa: BLE001  an interrupt too: it is raised below
                failed = failed or error
            # Only now: an interrupt between the two undoes twice, which does no harm.
            self.undo.pop()
        if self.claimed:
            with _claiming:
                _claims.remove(self.memory.identities)
            self.claimed = False
        if failed is not None:
            raise failed
