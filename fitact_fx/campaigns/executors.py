"""One small interface over where the blocks of a campaign run, which loses none when a worker dies.

In this process; in processes of this machine, forked where that is possible; or wherever an executor of the user's
runs them. A thread of this process hands blocks out and sees to workers that die, so that whoever waits for
a block gets its result, or an error that is not about workers.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import sleep
from typing import Any, Protocol

from fitact_fx.campaigns.dispatching import Dispatcher, Pool
from fitact_fx.campaigns.payload import Work, as_bytes, forget, left_for_forks, receive, run_block, written
from fitact_fx.campaigns.processes import Processes, can_fork
from fitact_fx.errors import CampaignError
from fitact_fx.faults.places import is_whole

_PAUSE = 2.0  # seconds


class Workers(Protocol):
    """Where blocks run. `slots` is how many can run at once."""

    @property
    def slots(self) -> int: ...
    def submit(self, block: Any) -> "Future[Any]": ...


@contextmanager
def workers_for(job: Work, *, workers: int = 1, executor: Any = None) -> Iterator[Workers]:
    """Inside, blocks of `job` can be run; behind it, no process of ours is left, and what still ran is given up.

    `workers`: so many processes of this machine, 1 being this one; with an executor, how many blocks it can run
    at once, if it does not say. `executor`: any concurrent.futures.Executor, which is not shut down, or a
    dask.distributed Client. Raises CampaignError for other things, and where a job cannot be sent.
    """
    if not is_whole(workers) or workers < 1:
        raise CampaignError(f"workers is a whole number from 1 up; got {workers!r}")
    if executor is None and workers == 1:
        yield _Here(job)
        return
    with ExitStack() as stack:
        dispatcher = Dispatcher(_pool(job, int(workers), executor, stack))
        try:
            yield dispatcher
        finally:
            dispatcher.close()


def completed(workers: Workers, blocks: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """(block, result) as they come, of blocks that are asked for only when there is a free place for them.

    A block that is None means that there is nothing to do until another result is here. What running a block raised
    is raised here.
    """
    flying: dict[Future[Any], Any] = {}
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    more = True
    while more or flying:
        # Twice as many as can run, so that none waits for this process.
        most = 2 * workers.slots
        while more and len(flying) < most:
            try:
                block = next(blocks)
            except StopIteration:
                more = False
                break
            if block is None:
                break
            future = workers.submit(block)
            flying[future] = block
            future.add_done_callback(done.put)
            if future.done():  # in this process: its result may change what comes next
                break
        assert flying or not more, "there is nothing to wait for"
        if flying:
            first = done.get()
            yield flying.pop(first), first.result()


@dataclass(frozen=True)
class _Here:
    """This process: a block is run when it is submitted."""

    job: Work
    slots: int = 1

    def submit(self, block: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(self.job.run(block))
        except Exception as error:  # noqa: BLE001  it belongs to whoever asks for the result
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class _Given:
    """An executor of the user's."""

    executor: Executor
    token: str
    source: Path | None
    count: Callable[[], int]
    remedy: str = "use fewer workers, or give them more memory"
    has_lost_all: Callable[[], bool] = lambda: False

    @property
    def slots(self) -> int:
        return max(1, self.count())

    def submit(self, block: Any, attempt: int) -> "Future[Any]":
        return self.executor.submit(run_block, self.token, self.source, block, attempt)

    def renew(self, error: BaseException) -> None:
        """A dask cluster starts workers again by itself; what another executor does is its own business."""
        if isinstance(error, BrokenExecutor):
            raise CampaignError(
                f"the executor is broken, since a worker of it died ({error});\n"
                "  run the campaign again with a new one, or with workers=..., which replaces workers that die"
            ) from error
        sleep(_PAUSE)  # a cluster that restarts takes a while, and what is handed out meanwhile dies with it

    def close(self, *, busy: bool) -> None:
        """It is the user's to shut down."""


def _pool(job: Work, workers: int, executor: Any, stack: ExitStack) -> Pool:
    if executor is None and can_fork(job.threads):
        return Processes("fork", workers, job.threads, stack.enter_context(left_for_forks(job)), None)
    if executor is None:
        return Processes("spawn", workers, job.threads, *stack.enter_context(written(job)))
    if isinstance(executor, Executor):
        count = workers if workers > 1 else getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        return _Given(executor, *stack.enter_context(written(job)), lambda: count)
    if type(executor).__module__.startswith("distributed") and hasattr(executor, "get_executor"):
        return stack.enter_context(_dask(job, executor))
    kind = type(executor).__name__
    raise CampaignError(
        f"executor is a {kind};\n  give a concurrent.futures.Executor, or a dask.distributed Client that is not "
        "asynchronous"
    )


def _tasks_known(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


@contextmanager
def _dask(job: Work, client: Any) -> Iterator[_Given]:
    """The cluster of this client; a plugin brings the job also to workers that are started later."""
    from distributed import WorkerPlugin

    token, sent = os.urandom(16).hex(), as_bytes(job)

    class Bring(WorkerPlugin):
        def setup(self, worker: object) -> None:
            receive(token, sent)

        def teardown(self, worker: object) -> None:
            forget(token)

    try:
        client.register_plugin(Bring(), name=token)
        yield _Given(
            client.get_executor(pure=False),
            token,
            None,
            lambda: sum(client.nthreads().values()),
            # What is handed out while a cluster restarts may be forgotten by its scheduler and never be cancelled.
            has_lost_all=lambda: client.run_on_scheduler(_tasks_known) == 0,
        )
    finally:
        with suppress(Exception):  # the cluster may be gone, and the plugin with it
            client.unregister_worker_plugin(token)
