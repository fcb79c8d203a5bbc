"""What surrounds a forward without being an argument of it: random states, autocast, torch's fused attention."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

DEVICES = ("cpu", "cuda")


class RandomStates(NamedTuple):
    """The states of the global generators a forward may draw from."""

    torch_state: bytes
    python_state: object
    numpy_state: bytes

    @classmethod
    def now(cls) -> "RandomStates":
        return cls(torch.get_rng_state().numpy().tobytes(), random.getstate(), _numpy_key())


def _numpy_key() -> bytes:
    state: Any = np.random.get_state()  # noqa: NPY002  user code may still draw from the old global generator
    return bytes(state[1].tobytes()) + str(state[2:]).encode()


def autocast_state() -> tuple[object, ...]:
    """Whether autocast is on, and to which type, for each kind of device."""
    return tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in DEVICES)


@contextmanager
def other_autocast() -> Iterator[None]:
    """Autocast is on inside where it was off, and off where it was on: a region that fixes it shows itself."""
    before = {device: torch.is_autocast_enabled(device) for device in DEVICES}
    try:
        for device, enabled in before.items():
            torch.set_autocast_enabled(device, not enabled)
        yield
    finally:
        for device, enabled in before.items():
            torch.set_autocast_enabled(device, enabled)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """The global generators are the user's: whatever is drawn inside is given back behind."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def same_chances() -> Iterator[None]:
    """Whatever is drawn inside is the same each time, and the global generators are as before behind."""
    with random_states_kept():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield


@contextmanager
def slow_path() -> Iterator[None]:
    """Attention step by step, as a hardened model computes it: torch's fused path calls no activation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """torch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
