"""Running again only what depends on the tensors that are hit, from clean values that were kept.

What a fault cannot reach is what it was: a value is taken from those kept if it is clean and kept, and is otherwise
computed from its inputs, which are found in the same way. So any choice of kept values gives the right outputs, bit for
bit, and a good one saves time; that choice is made in `kept_values`. Values that turn out to be what they were
without faults end a run early: whatever is computed from them alone has not changed either.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix.kept_values import Demand, groups_of, worth_keeping
from fitact_fx.campaigns.suffix.plans import Plan, Plans
from fitact_fx.campaigns.suffix.rehearsal import Seen, clock, require_same, tried
from fitact_fx.campaigns.suffix.slices import total
from fitact_fx.campaigns.suffix.soundness import require_sound
from fitact_fx.campaigns.suffix.steps import Steps, Values
from fitact_fx.campaigns.suffix.touched import touched
from fitact_fx.campaigns.suffix.values import same_bits, storages_of
from fitact_fx.errors import CampaignError, close_to


class _Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""The output is the clean one, bit for bit."""


@dataclass(eq=False)
class _Clean:
    """One batch without faults: its arguments, the values that were kept, and the memory that must not change."""

    arguments: dict[int, Any]
    share: float
    values: dict[int, Any] = field(default_factory=dict)
    kept: int = 0
    addresses: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.addresses |= {address for value in self.arguments.values() for address, _ in storages_of(value)}

    def keep(self, number: int, value: Any, room: int) -> int:
        """Keep a value if its memory fits; the bytes that takes: none where that memory is there anyway."""
        new = {address: size for address, size in storages_of(value) if address not in self.addresses}
        taken = sum(new.values())
        if taken > room:
            return 0
        self.addresses |= new.keys()
        self.values[number] = value
        self.kept |= 1 << number
        return taken


class Suffixes:
    """Runs again only what depends on the tensors that are hit. Made by `Suffixes.of`.

    `costs`: value -> seconds that it takes for all batches. `kept_bytes`: the memory that clean values take.
    """

    def __init__(self, steps: Steps, reading: Mapping[str, int], clean: Sequence[_Clean], early: bool) -> None:
        self._steps, self._touched, self._clean = steps, reading, clean
        self._plans = Plans(steps, compare=early)
        self.costs: dict[str, float] = {}
        self.kept_bytes = 0

    @classmethod
    def of(
        cls,
        model: GraphModule,
        batches: Sequence[Batch],
        memory_bytes: int,
        weights: Mapping[str, float],
        *,
        costs: Mapping[str, float] | None = None,
        early: bool = True,
    ) -> "Suffixes":
        """Run the clean `batches` once, and keep what is worth it within `memory_bytes`.

        `model` is traced, functionalised, in evaluation mode, and holds no faults now. `weights`: name of a tensor or
        injection node -> how many trials hit it. `costs` are those of an earlier process, for the same choice as
        then. With `early`, values that were kept are compared with what is computed in their place.

        CampaignError where the graph has something for which the outputs could differ from those of the whole model.
        """
        require_sound(model)
        steps = Steps.of(model)
        seen, expected = tried(model, steps, batches[0])
        samples = sum(max(batch.size, 1) for batch in batches)
        clean = [_Clean(steps.bound(batch), max(batch.size, 1) / samples) for batch in batches]
        suffixes = cls(steps, touched(model, steps.held), clean, early)
        guessed = [seconds / clean[0].share for seconds in seen.seconds]
        known = guessed if costs is None else [costs.get(name, 0.0) for name in steps.names]
        kept = suffixes._chosen(seen, known, weights, memory_bytes * clean[0].share)
        measured, output = suffixes._filled(kept, batches, memory_bytes)
        require_same(output, expected)
        # The least of what was measured, since noise only ever adds.
        least = map(min, guessed, *measured)
        suffixes.costs = dict(zip(steps.names, least, strict=True)) if costs is None else dict(costs)
        return suffixes

    def outputs(self, number: int, hit: Collection[str]) -> Any | Literal[_Unchanged.UNCHANGED]:
        """What the model gives for batch `number`, now that faults are in the tensors `hit`; UNCHANGED if nothing else.

        Names are those of `faults.Memory`, injection nodes among them. CampaignError for a name that is not there.
        """
        clean, sources = self._clean[number], self._sources(hit)
        plan = self._plans.of(sources, clean.kept)
        if plan is None:
            return UNCHANGED
        with torch.inference_mode():
            values: Values = [None] * len(self._steps.names)
            for given in plan.loaded:
                values[given] = clean.arguments[given] if given in clean.arguments else clean.values[given]
            if self._run(plan, values, clean, sources):
                return UNCHANGED
            return _own(values[self._steps.output], clean)

    def seconds(self, hit: Collection[str]) -> float:
        """What `outputs` takes for all batches if these are hit and no value turns out to be what it was."""
        costs, sources = [self.costs.get(name, 0.0) for name in self._steps.names], self._sources(hit)
        shares: Counter[int] = Counter()
        for clean in self._clean:
            shares[clean.kept] += clean.share  # type: ignore[assignment]
        plans = ((self._plans.of(sources, kept), share) for kept, share in shares.items())
        return sum(total(costs, plan.executed) * share for plan, share in plans if plan is not None)

    def _run(self, plan: Plan, values: Values, clean: _Clean, sources: int) -> bool:
        """Take the steps of a plan; whether the output turned out to be unchanged on the way."""
        flow, equal = self._steps.flow, 0
        for number, run, compared, used_up in plan.steps:
            values[number] = run(values)
            if compared and same_bits(values[number], clean.values[number]):
                equal |= 1 << number
                if not flow.dirty(sources, equal) & flow.roots & (-1 << number):
                    return True
            for used in used_up:
                values[used] = None
        return not plan.executed >> self._steps.output & 1

    def _sources(self, hit: Collection[str]) -> int:
        sources = 0
        for name in hit:
            if name not in self._touched:
                raise CampaignError(
                    f"the model has no tensor {name!r}{close_to(name, self._touched)};\n  give names as in Memory.names"
                )
            sources |= self._touched[name]
        return sources

    def _chosen(self, seen: Seen, costs: Sequence[float], weights: Mapping[str, float], budget: float) -> int:
        """The values to keep if those of the first batch may take this many bytes."""
        flow, demanded = self._steps.flow, Counter[int]()
        for name, weight in weights.items():
            demanded[self._sources([name])] += weight  # type: ignore[assignment]
        demands = [Demand(flow.dirty(sources), weight) for sources, weight in demanded.items() if weight > 0]
        wanted = 0
        for demand in demands:
            wanted |= flow.slice(demand.dirty, seen.keepable).loaded
        groups = groups_of(wanted & ~flow.given, seen.storages, seen.sizes)
        return worth_keeping(flow, costs, demands, groups, budget)

    def _filled(self, kept: int, batches: Sequence[Batch], memory_bytes: int) -> tuple[list[list[float]], Any]:
        """Run all batches and keep these values while there is room.

        For each batch the seconds by value, as if all were like it, and the output of the first.
        """
        measured, first = [], None
        for clean, batch in zip(self._clean, batches, strict=True):
            seconds = []
            with torch.inference_mode():
                start = clock(batch)
                for number, value in self._steps.walk(clean.arguments):
                    seconds.append((clock(batch) - start) / clean.share)
                    if kept >> number & 1:
                        self.kept_bytes += clean.keep(number, value, memory_bytes - self.kept_bytes)
                    if clean is self._clean[0]:
                        first = value
                    start = clock(batch)
            measured.append(seconds)
        return measured, first


def _own(output: Any, clean: _Clean) -> Any:
    """The output, with copies of what lies in memory that is kept: the caller may do with it what it likes."""

    def own(value: Any) -> Any:
        shared = isinstance(value, Tensor) and any(address in clean.addresses for address, _ in storages_of(value))
        return value.clone() if shared else value

    return tree_map(own, output)
