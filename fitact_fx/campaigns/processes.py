"""A pool of processes on this machine that can be ended at once, and made anew when one of them dies."""

import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from fitact_fx.campaigns.payload import run_block

_REMEDIES = {
    "fork": "use fewer workers",
    "spawn": 'use fewer workers, and start what a script does under `if __name__ == "__main__":`',
}


def can_fork(threads: int) -> bool:
    """Whether children can go on from what this process holds: compiled code, models that cannot be pickled.

    A child may not compute with several threads, whose pool was left behind, nor on a GPU that is in use. Apple's
    own libraries do not survive a fork either.
    """
    has_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return has_fork and threads == 1 and not torch.cuda.is_initialized()


class Processes:
    """`slots` processes that are started by `method` and compute with `threads` threads each."""

    def __init__(self, method: str, slots: int, threads: int, token: str, source: Path | None) -> None:
        self.slots = slots
        self.remedy = _REMEDIES[method]
        self._method, self._threads = method, threads
        self._token, self._source = token, source
        self._open()

    def submit(self, block: Any, attempt: int) -> "Future[Any]":
        """Have a block run; BrokenProcessPool, here or in the future, if a process dies."""
        return self._pool.submit(run_block, self._token, self._source, block, attempt)

    def renew(self, error: BaseException) -> None:
        """New processes in the place of all there are."""
        self.close(busy=True)
        self._open()

    def has_lost_all(self) -> bool:
        """Never: a process that dies breaks the pool."""
        return False

    def close(self, *, busy: bool) -> None:
        """End all processes and wait for that; those that are `busy` are killed."""
        started = [process for process in self._context.started if process.pid is not None]
        if busy:
            for process in started:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for process in started:
            process.join()

    def _open(self) -> None:
        self._context = _Recording(self._method)
        context: Any = self._context
        self._pool = ProcessPoolExecutor(self.slots, context, _begin, (self._threads,))
        try:
            with warnings.catch_warnings():
                # Of the threads of this process a child has none, and it needs none of them.
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                self._pool.submit(_nothing)  # so that the fork is here and now
        except BaseException:  # there may be room for some of the processes only
            self.close(busy=True)
            raise


class _Recording:
    """A context of multiprocessing that remembers which processes were made with it."""

    def __init__(self, method: str) -> None:
        self._context: Any = multiprocessing.get_context(method)
        self.started: list[BaseProcess] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # noqa: N802  the name that multiprocessing has for it
        process: BaseProcess = self._context.Process(*args, **kwargs)
        self.started.append(process)
        return process


def _begin(threads: int) -> None:
    """What a worker process does first."""
    torch.set_num_threads(threads)  # before anything is computed: a fork has no pool of threads, and would wait for it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed cannot end its children, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _nothing() -> None:
    """Has a pool start its processes."""
