"""Faults in activations: a copy of a model with injection nodes, and the faults of a trial in them."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from fitact_fx.ambience import random_states_kept
from fitact_fx.bounded import exchanged
from fitact_fx.errors import FaultError, FitactError, SiteError, site_message
from fitact_fx.faults.fault_model import FaultModel
from fitact_fx.faults.formats import Format, as_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.places import is_whole
from fitact_fx.faults.targets import Target
from fitact_fx.injected import Injected
from fitact_fx.ownership import owned_copy
from fitact_fx.passes import apply
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.passes.injecting import Inject
from fitact_fx.policies import Pass
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace


def inject(
    model: nn.Module,
    at: str | Sequence[str],
    fault: FaultModel,
    where: str = "after",
    *,
    format: str | Format = "q15.16",  # noqa: A002 - the word of the field, and of the public API
    seed: int = 0,
    trial: int = 0,
    example_inputs: tuple[Any, ...] | Tensor | None = None,
    permanent: bool = False,
    capacity: int | None = None,
) -> GraphModule:
    """A copy of `model` whose activations are hit by the faults of one trial. The model itself is never changed.

    `at`: globs over the names of activation sites; one that matches no site means any other value of the graph:
    `layer1.0.conv1`, `layer1.0.add`, or an argument of `forward`. `where`: "after" or "before" the bound that a
    hardened model has there. Drawing needs the shapes of activations, so it is done by a run on `example_inputs` (a
    tensor or a tuple of positional inputs), or else when the result is first called; compile it only after that.

    The faults of `trial` hit every call until others are loaded, which compiles nothing anew:

        with fault.draw(faulty, format, seed, trial=7, targets=["activations"]).applied(faulty):
            faulty(x)

    They are transient, each hitting one sample of the batch, which may be smaller than that of the example;
    `permanent` ones hit the same element of every sample. `capacity` is the number of elements that one node
    can hit in a trial (by default enough for `fault`); a list with more is refused.

    The caller's inputs stay as they are where they are hit, also if the model writes to them in place. Parameters are
    shared with `model`, and its forward hooks run on the example inputs too. Raises TracingError for
    a model that has no graph, FaultError for a glob that matches nothing, for inputs that the model does not take and
    for a fault that cannot be drawn, SiteError for a value that cannot be injected into.
    """
    if not isinstance(fault, FaultModel):
        raise FaultError(f"fault is {fault!r};\n  give a value, such as BitFlip(count=1)")
    if capacity is not None and (not is_whole(capacity) or capacity < 1):
        raise FaultError(f"capacity is a whole number from 1 up; got {capacity!r}")
    stored = as_format(format)
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    positional = None if given is None else tuple(given)
    graph_module = owned_copy(model) if isinstance(model, TracedModule) else trace(model, positional)
    assert isinstance(graph_module, GraphModule)
    globs = (at,) if isinstance(at, str) else tuple(at)
    _, names = apply(graph_module, Functionalise(), Inject(globs, stored, where, permanent))
    trial_ = _Trial(names, fault, stored, seed, trial, capacity)
    if positional is None:
        graph_module.register_forward_pre_hook(_FirstRun(trial_), with_kwargs=True)
    else:
        trial_.load(graph_module, positional, {})
    return graph_module


@dataclass(frozen=True)
class _Trial:
    """What is to be drawn into which injection nodes."""

    names: tuple[str, ...]
    fault: FaultModel
    format: Format
    seed: int
    trial: int
    capacity: int | None

    def load(self, faulty: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out the shapes by a run on copies of these inputs, draw, and load."""
        nodes, seen = _nodes(faulty), _activations(faulty, args, kwargs)
        for name in self.names:
            if name not in seen:
                remedy = "give inputs that reach it, or leave it out of `at`"
                raise FaultError(f"{name} did not run on the example inputs;\n  {remedy}")
            shape = seen[name].shape
            elements = prod(shape[1:] if nodes[name].permanent else shape)
            nodes[name].prepare(shape, self.capacity or self.fault.room(name, elements, self.format), seen[name].device)
        memory = Memory.of(faulty)
        targets = [Target("activations", glob.escape(name)) for name in self.names]
        faults = self.fault.draw(memory, self.format, self.seed, self.trial, targets)
        for one in faults.tensors:
            memory.names[one.name].hit(self.format, faults.effect, one, [])  # to stay: nothing is undone


@dataclass(frozen=True)
class _FirstRun:
    """A hook that draws at the first call, and then goes."""

    trial: _Trial

    def __call__(self, faulty: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            remedy = "give fitact_fx.inject example_inputs, or run what it returned once before compiling it"
            raise SiteError(f"no faults are drawn yet, since the shapes of activations are not known;\n  {remedy}")
        assert isinstance(faulty, GraphModule)
        self.trial.load(faulty, args, kwargs)
        _drop_hooks(faulty, self)  # only now: a call that failed has drawn nothing


def _drop_hooks(faulty: nn.Module, *hooks: _FirstRun) -> None:
    registered = faulty._forward_pre_hooks
    for key in [key for key, hook in registered.items() if hook in hooks]:
        del registered[key]


def _nodes(faulty: nn.Module) -> dict[str, Injected]:
    return {module.name: module for module in faulty.modules() if isinstance(module, Injected)}


class _Seen(NamedTuple):
    shape: tuple[int, ...]
    device: torch.device


def _activations(faulty: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, _Seen]:
    """What passes each injection node in one run on copies of these inputs; the model is left as it is."""
    seen: dict[str, _Seen] = {}

    def note(node: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(node, Injected)
        now = _Seen(tuple(output.shape), output.device)
        if seen.setdefault(node.name, now) != now:
            sizes = f"{seen[node.name].shape} and {now.shape}"
            raise SiteError(
                site_message(node.name, node.source, f"it runs at several sizes, {sizes}", "inject elsewhere")
            )

    own = owned_copy(faulty)
    _drop_hooks(own, *(hook for hook in own._forward_pre_hooks.values() if isinstance(hook, _FirstRun)))
    for node in _nodes(own).values():
        node.observing = True
        node.register_forward_hook(note)
    # The model may overwrite what it is called with, and update its statistics.
    args, kwargs = tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, (args, kwargs))
    try:
        with torch.no_grad(), random_states_kept(), exchanged(own, Pass()):
            own(*args, **kwargs)
    except FitactError:
        raise
    except Exception as error:  # the user's own code may raise anything
        remedy = "give inputs that the model takes"
        raise FaultError(
            f"the model raised {type(error).__name__} on its example inputs: {error};\n  {remedy}"
        ) from error
    return seen
