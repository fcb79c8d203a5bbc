"""The thread of a campaign that hands blocks out and sees to workers that die, so that no block is lost."""

import reprlib
from collections import deque
from concurrent.futures import BrokenExecutor, CancelledError, Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

from fitact_fx.errors import CampaignError

_ATTEMPTS = 3
_SILENCE = 5.0  # seconds without a message, after which the pool is asked what became of the blocks


class Pool(Protocol):
    """What a dispatcher hands blocks to. `remedy` is what helps if workers keep dying."""

    @property
    def remedy(self) -> str: ...
    @property
    def slots(self) -> int: ...
    def submit(self, block: Any, attempt: int) -> "Future[Any]": ...
    def renew(self, error: BaseException) -> None: ...
    def has_lost_all(self) -> bool: ...
    def close(self, *, busy: bool) -> None: ...


@dataclass(eq=False)
class _Task:
    block: Any
    outcome: "Future[Any]" = field(default_factory=Future)
    deaths: int = 0


class Dispatcher:
    """Hands blocks to a pool, and again to a new one if a worker dies.

    Which of the blocks that were under way killed the worker is not known, so after that each of them is run
    alone: one that does not survive this either is named. All state belongs to one thread, which gets
    messages: a task to do, a future that is done, None to end.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._inbox: SimpleQueue[_Task | Future[Any] | None] = SimpleQueue()
        self._waiting: deque[_Task] = deque()
        self._flying: dict[Future[Any], _Task] = {}
        self._broken: BaseException | None = None
        self._thread = Thread(target=self._serve, name="fitact-fx campaign", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        return self._pool.slots

    def submit(self, block: Any) -> "Future[Any]":
        task = _Task(block)
        self._inbox.put(task)
        return task.outcome

    def close(self) -> None:
        """Give up what is not done, and end the pool."""
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        try:
            while True:
                try:
                    if (message := self._next()) is None:
                        break
                    self._take(message)
                    self._start()
                except Exception as error:  # noqa: BLE001  nobody would hear of it here, and all would wait
                    self._give_up(error)
        finally:
            busy = bool(self._flying)
            self._give_up(None)
            self._pool.close(busy=busy)

    def _next(self) -> "_Task | Future[Any] | None":
        """The next message. A pool may forget blocks without a word, whose futures count as cancelled then."""
        while True:
            try:
                return self._inbox.get(timeout=_SILENCE if self._flying else None)
            except Empty:
                if self._pool.has_lost_all():
                    lost = next(iter(self._flying))
                    if lost.cancel() or lost.cancelled():
                        return lost

    def _take(self, message: "_Task | Future[Any]") -> None:
        if isinstance(message, _Task):
            self._waiting.append(message)
            return
        task = self._flying.pop(message, None)
        if task is None:  # it was given up
            return
        error = CancelledError() if message.cancelled() else message.exception()
        if error is None:
            task.outcome.set_result(message.result())
        # KilledWorker is dask's, which is not imported here.
        elif isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ == "KilledWorker":
            self._died(task, error)
        else:
            task.outcome.set_exception(error)

    def _died(self, task: _Task, error: BaseException) -> None:
        self._broken = error
        task.deaths += 1
        if task.deaths < _ATTEMPTS:
            self._waiting.appendleft(task)
            return
        told = f"workers died {_ATTEMPTS} times on the same work, {reprlib.repr(task.block)}"
        failure = CampaignError(f"{told}, probably for want of memory;\n  {self._pool.remedy}")
        failure.__cause__ = error
        task.outcome.set_exception(failure)

    def _start(self) -> None:
        """Hand out what may run now."""
        while self._waiting and self._may_start(self._waiting[0]):
            if self._broken is not None:
                self._pool.renew(self._broken)
                self._broken = None
            task = self._waiting.popleft()
            try:
                future = self._pool.submit(task.block, task.deaths)
            except BrokenExecutor as error:
                self._died(task, error)
            except Exception as error:  # noqa: BLE001  an executor may refuse in its own way
                task.outcome.set_exception(error)
            else:
                self._flying[future] = task
                future.add_done_callback(self._inbox.put)

    def _may_start(self, task: _Task) -> bool:
        """A suspect runs alone, and nothing new starts until all that a broken pool had is back."""
        suspect = task.deaths > 0 or any(each.deaths for each in self._flying.values())
        return not self._flying or (self._broken is None and not suspect)

    def _give_up(self, error: Exception | None) -> None:
        """Fail all that is not done, or cancel it."""
        tasks = [*self._flying.values(), *self._waiting]
        futures = list(self._flying)
        self._flying.clear()
        self._waiting.clear()
        for future in futures:
            future.cancel()
        for task in tasks:
            if error is None:
                task.outcome.cancel()
            else:
                task.outcome.set_exception(error)
