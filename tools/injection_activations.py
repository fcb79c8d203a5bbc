"""Faults in activations, for tools/measure_injection.py: at every ReLU, a new set in every forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import perf_counter

import numpy as np
import torch
from injection_cases import WORD, Trial, merged
from torch import Tensor, nn

import fitact_fx
from fitact_fx.faults import BitFlip, Memory
from fitact_fx.injected import Injected

RATE = 1e-6


def ours_on_relus(model: nn.Module, batch: Tensor) -> Trial:
    """A node behind every ReLU: the faults drawn and loaded anew for every forward, and hit in it."""
    fault = BitFlip(rate=RATE)
    faulty = fitact_fx.inject(model, "*", fault, format="float32", example_inputs=batch)
    memory, nodes = Memory.of(faulty), [module for module in faulty.modules() if isinstance(module, Injected)]
    spent: list[float] = []
    numbers = count(1)
    for node in nodes:
        node.register_forward_pre_hook(lambda *_: spent.append(-perf_counter()))
        node.register_forward_hook(lambda *_: spent.append(perf_counter()))

    def trial() -> float:
        spent.clear()
        started = perf_counter()
        faults = fault.draw(memory, "float32", trial=next(numbers), targets=["activations"])
        with torch.no_grad(), faults.applied(memory):
            loaded = perf_counter() - started
            faulty(batch)
        return loaded + sum(spent)

    return trial


def bare_on_relus(model: nn.Module, batch: Tensor) -> tuple[Trial, int]:
    """Behind every ReLU a copy, and an XOR into it; places and masks are ready."""
    sizes: list[int] = []
    with _behind_relus(model, lambda module, args, output: sizes.append(output.numel())), torch.no_grad():
        model(batch)
    rng = np.random.default_rng(0)
    hits = []
    for size in sizes:
        chosen = np.unique(rng.integers(0, size * WORD, rng.binomial(size * WORD, RATE)))
        hits.append((len(chosen), *merged(*divmod(chosen, WORD))))

    def trial() -> float:
        spent, turn = [], iter(hits)

        def inject(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            _, places, masks = next(turn)
            started = perf_counter()
            faulty = output.clone()
            faulty.view(-1).view(torch.int32)[places] ^= masks
            spent.append(perf_counter() - started)
            return faulty

        with _behind_relus(model, inject), torch.no_grad():
            model(batch)
        return sum(spent)

    return trial, sum(flips for flips, _, _ in hits)


@contextmanager
def _behind_relus(model: nn.Module, hook: Callable[..., object]) -> Iterator[None]:
    handles = [each.register_forward_hook(hook) for each in model.modules() if isinstance(each, nn.ReLU)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
