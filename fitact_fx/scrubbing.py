"""The guard over a model's parameters by itself, and its check in place, which repairs what it finds.

A parameter outside the range that it had when it was guarded is a fault for certain: 0 takes its place, which harms
less than a large wrong number. The guard does so in the graph, at each inference; `scrub` does so in memory,
whenever it is called, so that faults do not pile up.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fitact_fx.errors import SiteError, UnprotectedWarning
from fitact_fx.nodes import called_module, stored_at
from fitact_fx.ownership import owned_copy
from fitact_fx.parameter_limits import COPIES, WORDS, Limits
from fitact_fx.passes import apply
from fitact_fx.passes.guarding import Guard, unguarded
from fitact_fx.repairs import Cleared, RepairedElement, RepairedElements, RepairedLimit, Scrubbed
from fitact_fx.traced import TracedModule, joined, parts
from fitact_fx.tracing import trace


def guard(
    model: nn.Module,
    limits: str = "channel",
    example_inputs: tuple[Any, ...] | None = None,
    frontend: str | None = None,
) -> TracedModule:
    """A copy of `model` that checks every parameter before it is used: what is outside its range now counts as 0.

    Outside are NaN and infinity too. Clean outputs are the model's own, bit for bit; those of a TransformerEncoderLayer
    are what it gives with torch's fast path off. `limits`: "channel" for a range per output channel (each index of a
    parameter's dimension 0, or 1 for a transposed convolution), "tensor" for one per tensor; a tensor with fewer than
    two dimensions has one range. The limits are stored three times and voted on bit by bit, so that one corrupted copy
    changes nothing. They are those of the parameters as they are: guard anew after training them or loading others. A
    model that writes to a guarded parameter when it runs raises SiteError then.

    Parameters are shared with `model`, and keep their names. `example_inputs` and `frontend` are those of `trace`; a
    hardened model keeps its bounds. Parameters that cannot be guarded, such as those of an embedding with max_norm,
    are named in an UnprotectedWarning. Raises TracingError for a model that has no graph, RecipeError for unknown
    words, and SiteError for parameters that hold NaN or infinity or no numbers yet, for a model that is
    guarded already, and where there is nothing to guard.
    """
    chosen = Guard(limits)
    traced = owned_copy(model) if isinstance(model, TracedModule) else trace(model, example_inputs, frontend=frontend)
    assert isinstance(traced, TracedModule)
    put_guard(traced, chosen, stacklevel=2)
    return traced


def put_guard(traced: TracedModule, chosen: Guard, stacklevel: int = 2) -> None:
    """Guard a graph in place; an UnprotectedWarning, as if from that far up, names what cannot be guarded."""
    open_ = unguarded(traced)
    apply(traced, chosen)
    if open_:
        named = "".join(f"\n  {name}: {why}" for name, why in list(open_.items())[:5])
        more = f"\n  and {len(open_) - 5} more" if len(open_) > 5 else ""
        message = f"some parameters are used without a check:{named}{more}"
        warnings.warn(message, UnprotectedWarning, stacklevel=stacklevel + 1)


def scrub(model: nn.Module) -> Scrubbed:
    """Check every guarded parameter of `model` in place, and set what is outside its limits to 0.

    Writes to the Parameters themselves, which a guarded model shares with the model that it was made of. A number in a
    copy of the limits that the two others outvote is put right as well. Gradients, `requires_grad` and modes
    stay as they are. `model` is what `guard` or `harden` with a guard returned, or a module that holds
    it. Returns what was repaired; SiteError if there is no guard in `model`. A block of applied faults refuses at its
    end what others wrote inside, repairs too: scrub outside.
    """
    if not isinstance(model, nn.Module):
        raise SiteError(f"scrubbed is an nn.Module; got a {type(model).__name__}")
    elements: list[Cleared] = []
    limits: list[RepairedLimit] = []
    checked: dict[Tensor, None] = {}
    with torch.no_grad():
        for name, parameter, guarding in guarded_parameters(model):
            limits.extend(_vote(name, guarding))
            elements.extend(_cleared(name, parameter, guarding))
            checked[parameter] = None
    if not checked:
        raise SiteError(
            f"this {type(model).__name__} has no guard;\n  scrub what fitact_fx.guard returned, or "
            'harden(..., guard="parameters"): a lowered model shares the parameters of what it was made of'
        )
    return Scrubbed(RepairedElements(elements), tuple(limits), len(checked))


def guarded_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Limits]]:
    """Every parameter that a graph of `model` checks, under its name there, with its limits."""
    for path, part in parts(model).items():
        for node in part.graph.nodes:
            module = called_module(node) if node.op == "call_module" else None
            if isinstance(module, Limits):
                yield joined(path, stored_at(node)), _parameter(part, node), module


def _parameter(part: TracedModule, node: Node) -> nn.Parameter:
    return part.get_parameter(stored_at(node))


def _vote(name: str, guarding: Limits) -> Iterator[RepairedLimit]:
    """Give each copy the bits that most have."""
    voted = guarding.voted()
    for copy in COPIES:
        stored: Tensor = getattr(guarding, copy)
        words = WORDS[stored.element_size()]
        wrong = stored.view(words) != voted.view(words)
        for side, place in wrong.nonzero().tolist():
            at = side, place
            yield RepairedLimit(name, copy, ("low", "high")[side], place, float(stored[at]), float(voted[at]))
        if bool(wrong.any()):
            with torch.inference_mode(stored.is_inference()), torch.no_grad():
                stored.copy_(voted)


def _cleared(name: str, parameter: nn.Parameter, guarding: Limits) -> Iterator[Cleared]:
    """Set to 0 what is outside."""
    values = parameter.detach()
    if guarding.hold(values):
        return
    low, high = guarding.low_and_high()
    outside = ~((values >= low) & (values <= high))
    limits = (each.expand_as(values)[outside] for each in (low, high))
    yield Cleared(name, outside.nonzero(), values[outside], *limits)
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():  # in this order: the first lets gradients in
        parameter.masked_fill_(outside, 0)


__all__ = ["RepairedElement", "RepairedLimit", "Scrubbed", "guard", "guarded_parameters", "put_guard", "scrub"]
