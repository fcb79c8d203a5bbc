"""One batch run whole, and step by step: whether that gives the same, and what the steps take."""

from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from fitact_fx.ambience import RandomStates, random_states_kept
from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix.slices import as_set
from fitact_fx.campaigns.suffix.soundness import unsound
from fitact_fx.campaigns.suffix.steps import Steps
from fitact_fx.campaigns.suffix.values import is_plain, same_bits, storages_of, tensors_of

_ATTEMPTS = 4  # a model that draws does so each time; other threads of its process, as those of dask, now and then


@dataclass(eq=False)
class Seen:
    """What one run showed of each value: the memory it lies in, by number, whether it can be kept, how long it took.

    `sizes` has the bytes of each memory; that of inputs costs nothing.
    """

    storages: list[frozenset[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    keepable: int = 0


def tried(model: GraphModule, steps: Steps, batch: Batch) -> tuple[Seen, Any]:
    """Run a batch whole and step by step; what was seen, and the model's output.

    CampaignError if the outputs differ in a bit, if anything was drawn at random, or if a value changed after it was
    made, the model's own tensors included.
    """
    for _ in range(_ATTEMPTS):
        with random_states_kept():
            random = RandomStates.now()
            with torch.inference_mode():
                expected = batch.run(model)
            with torch.no_grad():
                seen, output = _watched(steps, batch)
            if RandomStates.now() == random:
                require_same(output, expected)
                return seen, expected
    raise unsound("it draws random numbers")


def require_same(output: Any, expected: Any) -> None:
    """CampaignError unless two outputs of the model are the same bit for bit."""
    if not same_bits(output, expected, unknown=True):
        raise unsound("it does not give the same output twice, or not when it is run step by step")


def _watched(steps: Steps, batch: Batch) -> tuple[Seen, Any]:
    args, kwargs = tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, batch[:2])
    given = steps.bound(Batch(args, kwargs, None))
    own = [each for held in steps.held for each in held if isinstance(each, Tensor)]
    watch = _Watch(own, tensors_of((args, kwargs)))
    last = steps.flow.last_uses((1 << len(steps.names)) - 1)
    seen, alive, output = Seen(), {}, None
    start = clock(batch)
    for number, value in steps.walk(given):
        seen.seconds.append(clock(batch) - start)
        seen.storages.append(watch.born(number, value))
        # A view of a tensor that can be hit would change with it, and be no clean value.
        if is_plain(value) and watch.own.isdisjoint(seen.storages[-1]):
            seen.keepable |= 1 << number
        alive[number] = output = value
        for used in last[number]:
            watch.gone(used, alive.pop(used), checked=not steps.consumed >> used & 1)
        start = clock(batch)
    watch.require_unchanged()
    seen.sizes = watch.sizes
    # An argument is there anyway; what a later step writes to does not stay what it was.
    seen.keepable &= ~(steps.flow.given | steps.consumed | as_set([steps.output]))
    return seen, output


class _Watch:
    """Follows the memory of values while they are alive: which share it, and whether anybody writes to it."""

    def __init__(self, own: list[Tensor], inputs: list[Tensor]) -> None:
        self.sizes: dict[int, int] = {}
        self.names: dict[int, int] = {}  # address -> the number of what lies there now
        self.users: Counter[int] = Counter()
        self.versions: dict[int, list[int | None]] = {}
        self.lasting = [(tensor, _version(tensor)) for tensor in (*own, *inputs)]
        for tensor, _ in self.lasting:
            for address, _ in storages_of(tensor):
                self._name(address, 0)
                self.users[address] += 1
        self.own = {self.names[address] for address, _ in storages_of(own)}

    def _name(self, address: int, size: int) -> int:
        if not self.users[address]:
            self.names[address] = len(self.sizes)
            self.sizes[len(self.sizes)] = size
        return self.names[address]

    def born(self, number: int, value: Any) -> frozenset[int]:
        """The numbers of the memory that a value lies in."""
        storages = dict(storages_of(value))
        named = frozenset(self._name(address, size) for address, size in storages.items())
        self.users.update(storages.keys())
        self.versions[number] = [_version(each) for each in tensors_of(value)]
        return named

    def gone(self, number: int, value: Any, checked: bool) -> None:
        """A value was used for the last time. CampaignError if it is not what it was."""
        if checked and [_version(each) for each in tensors_of(value)] != self.versions[number]:
            raise unsound("it changes a value in place after that was made")
        self.users.subtract(dict(storages_of(value)).keys())

    def require_unchanged(self) -> None:
        """CampaignError if anybody wrote to what lasts."""
        if any(_version(tensor) != version for tensor, version in self.lasting):
            raise unsound("it changes its own tensors or its inputs whenever it runs")


def clock(batch: Batch) -> float:
    """The time, once the device is done with what it was given."""
    if torch.cuda.is_available() and any(tensor.is_cuda for tensor in batch.tensors):
        torch.cuda.synchronize()
    return perf_counter()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
