"""How long models take beside each other, compiled."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor


def fastest_runs(compiled: Mapping[str, Callable[[Tensor], Any]], x: Tensor, seconds: float = 5.0) -> dict[str, float]:
    """Seconds for one run of each on `x`: the least of many, taken in turn for `seconds` in all, five at least.

    In turn, so that a busy spell of the machine hits all alike; the least, since noise only ever adds.
    """
    fastest = dict.fromkeys(compiled, float("inf"))
    with torch.no_grad():
        for run in compiled.values():
            run(x)
        rounds, end = 0, perf_counter() + seconds
        while rounds < 5 or perf_counter() < end:
            for name, run in compiled.items():
                start = perf_counter()
                run(x)
                fastest[name] = min(fastest[name], perf_counter() - start)
            rounds += 1
    return fastest
