"""A campaign's job on its way to the workers: left for a fork to find, or written once and loaded by each worker."""

import io
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, get_ident
from types import ModuleType
from typing import IO, Any, Protocol
from uuid import uuid4

import torch

from fitact_fx.errors import CampaignError


class Work(Protocol):
    """What workers do: blocks in, results out. It is pickled as a whole, and then belongs to one thread."""

    @property
    def threads(self) -> int:
        """With how many threads torch computes in a worker."""

    def run(self, block: Any) -> Any: ...


_left: dict[str, Work] = {}  # token -> what processes forked from this one find here
_sent: dict[str, bytes] = {}  # token -> what was sent to this process
_loaded: dict[int, tuple[str, Work]] = {}  # thread -> its own, since faults are applied in place
_loading = Lock()  # torch.fx numbers the code it generates, and two threads could get one number


def run_block(token: str, source: Path | None, block: Any, attempt: int) -> Any:  # noqa: ARG001  see below
    """What a worker is asked to do; the job comes from `source`, or from this process if that is None.

    `attempt` makes a call that is repeated another one, for executors that remember the results of calls.
    """
    return (_left[token] if token in _left else _own(token, source)).run(block)


@contextmanager
def left_for_forks(job: Work) -> Iterator[str]:
    """The token by which processes that are forked inside find the job; nothing is pickled."""
    token = uuid4().hex
    _left[token] = job
    try:
        yield token
    finally:
        del _left[token]


@contextmanager
def written(job: Work) -> Iterator[tuple[str, Path]]:
    """The token and the file of a job, for workers that see this machine's temporary folder."""
    token = uuid4().hex
    try:
        handle, name = tempfile.mkstemp(".job", "fitact-fx-")
    except OSError as error:
        raise _no_room(error) from error
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(job, file)
        yield token, path
    finally:
        path.unlink(missing_ok=True)
        forget(token)


def as_bytes(job: Work) -> bytes:
    """The job as it is sent over a network."""
    file = io.BytesIO()
    _write(job, file)
    return file.getvalue()


def receive(token: str, sent: bytes) -> None:
    """Keep a job that was sent to this process, until `forget`."""
    _sent[token] = sent


def forget(token: str) -> None:
    """Drop what this process was sent under that token, and what its threads loaded."""
    _sent.pop(token, None)
    for thread, (loaded, _) in list(_loaded.items()):
        if loaded == token:
            _loaded.pop(thread, None)


def _own(token: str, source: Path | None) -> Work:
    """The job of this thread, loaded at its first block; one of another campaign makes room first."""
    thread = get_ident()
    if thread not in _loaded or _loaded[thread][0] != token:
        _loaded.pop(thread, None)
        with _loading:
            job = _read(token, source)
        torch.set_num_threads(job.threads)
        _loaded[thread] = token, job
    return _loaded[thread][1]


def _write(job: Work, file: IO[bytes]) -> None:
    """By torch.save, which keeps tensors that share memory together, where pickle alone would part them."""
    try:
        torch.save(job, file, pickle_module=_pickling(), pickle_protocol=pickle.HIGHEST_PROTOCOL)
    except OSError as error:
        raise _no_room(error) from error
    except Exception as error:  # any object may refuse to be pickled in its own way
        raise CampaignError(
            f"the models cannot be sent to worker processes ({type(error).__name__}: {error});\n"
            "  define their classes and functions in a module, install cloudpickle, or use workers=1"
        ) from error


def _read(token: str, source: Path | None) -> Work:
    if source is None and token not in _sent:
        raise CampaignError("this worker was not sent the job;\n  run the campaign again, its finished trials are kept")
    try:
        # The process that made this campaign wrote it, and nobody else may write there.
        job: Work = torch.load(io.BytesIO(_sent[token]) if source is None else source, weights_only=False)
    except FileNotFoundError as error:
        raise CampaignError(
            f"a worker cannot read {source}, and may run on another machine;\n"
            "  set TMPDIR to a folder that all machines share, or give a dask.distributed Client"
        ) from error
    return job


def _pickling() -> ModuleType:
    """What can also pickle classes and functions that are defined in a function or a notebook, where there is such."""
    return import_module("cloudpickle" if find_spec("cloudpickle") else "pickle")


def _no_room(error: OSError) -> CampaignError:
    return CampaignError(
        f"the models cannot be written to {tempfile.gettempdir()} for the workers ({error});\n"
        "  set TMPDIR to a folder with room"
    )
