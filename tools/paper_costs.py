"""What a protection costs while nothing is faulty: time and memory, each beside the unprotected network."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fitact_fx

ROUNDS = 11


def costs(variants: Mapping[str, nn.Module], inputs: Tensor, threads: int) -> dict[str, dict[str, Any]]:
    """Variant -> time relative to the first one, eager and compiled, for these inputs (N, 3, 32, 32).

    Each round runs every variant once, in turn, and a ratio is taken within a round: the median of `ROUNDS`. On a CPU
    and with one thread, time is that thread's own, which what else the machine does touches less.
    """
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 and not inputs.is_cuda else time.perf_counter
    eager = _ratios({name: model.eval() for name, model in variants.items()}, inputs, clock)
    compiled = _ratios({name: _compiled(model, inputs) for name, model in variants.items()}, inputs, clock)
    return {name: {"eager": eager[name], "compiled": compiled[name]} for name in variants}


def _compiled(model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Any]:
    if isinstance(model, torch.fx.GraphModule):
        return fitact_fx.lower(model, inputs)  # type: ignore[no-any-return]
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        compiled(inputs)
    return compiled


def _ratios(
    calls: Mapping[str, Callable[[Tensor], Any]], inputs: Tensor, clock: Callable[[], float]
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(ROUNDS + 1):  # the first warms up
            for name, call in calls.items():
                started = clock()
                call(inputs)
                if inputs.is_cuda:
                    torch.cuda.synchronize()
                seconds[name].append(clock() - started)
    first = np.array(next(iter(seconds.values()))[1:])
    return {name: float(np.median(np.array(each[1:]) / first)) for name, each in seconds.items()}
