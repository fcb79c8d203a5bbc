"""Which values each site gives on real data: the exact extremes, kept per bound, never the activations."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.ambience import random_states_kept
from fitact_fx.batches import Batch, as_batches, refuse_inputs_as_labels
from fitact_fx.bounded import Bounded, bounded_sites, exchanged
from fitact_fx.errors import CalibrationError, site_message
from fitact_fx.injected import clean
from fitact_fx.policies import Pass


class Range:
    """The running least and greatest value under each bound of one site, and how many values each bound has seen."""

    def __init__(self, bounded: Bounded) -> None:
        self.bounded = bounded
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.count = 0

    def take(self, values: Tensor) -> None:
        """Widen the range by these activations, (N, ...). SiteError if their shape is a new one."""
        shape = self.bounded.bound_shape(values)
        if self.high is not None and self.high.shape != shape:
            raise self.bounded.shape_error(self.high, values)
        shared = self.bounded.spec.granularity.shared_dims(tuple(values.shape))
        low, high = extremes(values.detach(), shared, shape)
        self.count += values.numel() // max(1, low.numel())
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)


def extremes(values: Tensor, shared: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least and the greatest value over the dimensions `shared`, in the shape of the bounds."""
    if not values.is_floating_point():
        values = values.float()
    if not shared:
        return values.reshape(shape).clone(), values.reshape(shape).clone()
    return values.amin(shared).reshape(shape), values.amax(shared).reshape(shape)


def observed_ranges(hard: nn.Module, data: object) -> dict[str, Range]:
    """Site name -> the range of its clean values over all of `data`, in evaluation mode.

    Sites that carry the bounds of others are left out. The model's modes and the global random states are as before
    afterwards. Raises CalibrationError for empty data, for NaN, and for a site that never ran.
    """
    if any(tensor.is_meta for tensor in (*hard.parameters(), *hard.buffers()) if tensor.numel()):
        remedy = "give it values first: model.to_empty(device='cpu'), then load_state_dict"
        raise CalibrationError(f"the model is on the meta device, where nothing has a value;\n  {remedy}")
    ranges = {name: Range(bounded) for name, bounded in bounded_sites(hard).items() if not bounded.spec.carries}
    takers = {seen.bounded: seen.take for seen in ranges.values()}
    watch(hard, data, takers, "calibrating", after=lambda number: _refuse_overflow(ranges, number))
    for name, seen in ranges.items():
        if seen.high is None:
            problem = "it did not run on any batch"
            remedy = "calibrate with data that reaches it, or harden without it (sites=lambda site: site.name != ...)"
            raise CalibrationError(site_message(name, seen.bounded.source, problem, remedy))
    return ranges


Takers = Mapping[Bounded, Callable[[Tensor], None]]


def watch(hard: nn.Module, data: object, takers: Takers, doing: str, after: Callable[[int], None]) -> None:
    """Run all of `data` through the clean model in evaluation mode, and show each site's values to its taker.

    `after` is called with the number of each batch that has run.
    """
    with (
        random_states_kept(),
        evaluating(hard),
        exchanged(hard, Pass()),
        clean(hard),
        _recording(takers),
        torch.no_grad(),
    ):
        batches = tqdm(as_batches(data), doing, unit="batch", delay=2, disable=None, leave=False)
        for number, batch in enumerate(batches):
            if _has_room_for_another_input(hard, batch):
                refuse_inputs_as_labels(batch)
            batch.run(hard)
            after(number)


def _has_room_for_another_input(hard: nn.Module, batch: Batch) -> bool:
    """Whether the model has room for one more input behind these: the labels may have been meant for it."""
    taken = [each for each in inspect.signature(hard.forward).parameters.values() if each.name not in batch.kwargs]
    behind = taken[len(batch.args) :]
    # A switch (train=False) is no place for a tensor.
    has_room = bool(behind) and behind[0].default in (None, inspect.Parameter.empty)
    return bool(batch.args) and (has_room or any(each.kind is each.VAR_POSITIONAL for each in taken))


def _refuse_overflow(ranges: dict[str, Range], number: int) -> None:
    for name, seen in ranges.items():
        extremes = [extreme for extreme in (seen.low, seen.high) if extreme is not None]
        if not all(extreme.isfinite().all() for extreme in extremes):
            problem = f"its clean values hold NaN or infinity in batch {number}"
            remedy = "find out why the unhardened model computes them; no bound can be learned from them"
            raise CalibrationError(site_message(name, seen.bounded.source, problem, remedy))


@contextmanager
def _recording(takers: Takers) -> Iterator[None]:
    """Each site shows its values to its taker inside."""

    def recorder(take: Callable[[Tensor], None]) -> Any:
        return lambda module, args, output: take(args[0])

    handles = [bounded.register_forward_hook(recorder(take)) for bounded, take in takers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of `model` is in evaluation mode inside, and in its own mode again behind."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
