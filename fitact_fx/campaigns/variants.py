"""The models of a campaign: copies in evaluation mode, traced where that works, and what is to be known of each."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx.ambience import random_states_kept, slow_path
from fitact_fx.batches import Batch
from fitact_fx.bounded import bounded_sites
from fitact_fx.campaigns.fingerprints import code_of_model, fingerprint, identical_trees, parts
from fitact_fx.campaigns.samples import Samples
from fitact_fx.codes import FULL
from fitact_fx.errors import CampaignError, SiteError, TracingError
from fitact_fx.faults import BitFlip, Format
from fitact_fx.faults.cells import uncompiled
from fitact_fx.guarded import guard_bytes
from fitact_fx.injection import inject
from fitact_fx.ownership import evaluating_copy
from fitact_fx.passes import apply
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.sites import find_sites
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace


@dataclass(frozen=True)
class Injection:
    """Where activations are hit: globs over names, the side of the bound, and whether every sample is hit alike."""

    at: tuple[str, ...]
    where: str
    permanent: bool
    capacity: int


def prepared(name: str, model: nn.Module, samples: Samples, stored: Format, injection: Injection | None) -> nn.Module:
    """A copy in evaluation mode that shares only the Parameters: a graph where the model has one, or itself.

    CampaignError for what is no model, and for a graph that computes something else than the model.
    """
    if not isinstance(model, nn.Module):
        raise CampaignError(f"variant {name!r} is a {type(model).__name__} and not an nn.Module")
    plain = uncompiled(model)
    if isinstance(plain, GraphModule) and "lowered" in plain.meta:
        problem = f"variant {name!r} is lowered: its bounds are constants that no fault could hit"
        raise CampaignError(f"{problem};\n  give the hardened model itself, and compile=True")
    own = evaluating_copy(plain)
    if injection is not None:
        return _injected(own, samples.batches, stored, injection)
    try:
        graph = own if isinstance(own, TracedModule) else trace(own, _positional(samples), frontend="symbolic")
    except TracingError:
        return own  # evaluated as it is, whole
    assert isinstance(graph, TracedModule)
    try:
        apply(graph, Functionalise())
    except SiteError:
        return evaluating_copy(plain)  # half of it may have been rewritten
    return graph if own is graph or _agree(graph, own, samples) else own


def require_same_outputs(models: Mapping[str, nn.Module], samples: Samples) -> None:
    """CampaignError unless all variants give outputs of one form on the first batch, or raise, which is told later."""
    shapes: dict[str, list[Any]] = {}
    for name, model in models.items():
        with torch.inference_mode(), random_states_kept(), slow_path(), suppress(Exception):
            output = samples.batches[0].run(model)
            tensors = ((path, leaf) for path, leaf in parts(output) if isinstance(leaf, Tensor) and leaf.ndim)
            shapes[name] = [(path, tuple(leaf.shape[1:])) for path, leaf in tensors]
    for name, shape in shapes.items():
        first = next(iter(shapes))
        if shape != shapes[first]:
            ours, theirs = ([dims for _, dims in each] for each in (shapes[first], shape))
            raise CampaignError(
                f"variants {first!r} and {name!r} give outputs of different shapes, {ours} and {theirs} for a sample;\n"
                "  compare models that answer the same question"
            )


def _positional(samples: Samples) -> tuple[Any, ...] | None:
    """Inputs by which an argument that has a default is traced as it is called."""
    first = samples.batches[0]
    return None if first.kwargs else first.args


def _agree(graph: nn.Module, own: nn.Module, samples: Samples) -> bool:
    """Whether both give the same on a batch of each size."""
    with torch.inference_mode(), random_states_kept(), slow_path():
        for batch in {batch.size: batch for batch in samples.batches}.values():
            wanted = batch.run(own)
            try:
                found = batch.run(graph)
            except Exception:  # noqa: BLE001  whatever it raised, the model did not: an argument fixed to its default, a size
                return False
            if not identical_trees(found, wanted):
                return False
    return True


def _injected(own: nn.Module, batches: tuple[Batch, ...], stored: Format, injection: Injection) -> GraphModule:
    first = max(batches, key=lambda batch: batch.size)
    if first.kwargs:
        raise CampaignError("activations are hit in models that are called with positional inputs; give tuples")
    faulty = inject(
        own,
        injection.at,
        BitFlip(count=0),  # nothing yet: trials load their own
        injection.where,
        format=stored,
        example_inputs=first.args,
        permanent=injection.permanent,
        capacity=injection.capacity,
    )
    return faulty.eval()


def described(original: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What the reports say of a variant: class and fingerprint, memory, front end, and what becomes of each site."""
    plain = uncompiled(original)
    held = [each for site in bounded_sites(model).values() for each in site.memory.values()]
    parameters = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return {
        "class": type(plain).__name__.removesuffix("Impl"),
        "fingerprint": fingerprint(plain),
        "code": code_of_model(model),
        "bound_bytes": sum(each.numel() * each.element_size() for each in held),
        "guard_bytes": guard_bytes(model),
        "parameter_bytes": sum(each.numel() * each.element_size() for each in parameters.values()),
        "frontend": model.frontend if isinstance(model, TracedModule) else None,
        "coverage": list(_coverage(model)),
    }


def _coverage(model: nn.Module) -> Iterator[dict[str, Any]]:
    bounded = bounded_sites(model)
    for name, site in bounded.items():
        stored = "" if site.stored == FULL else f", in {site.stored}"
        how = f"{site.spec.granularity.name}, {site.policy.name}{stored}" if site.is_set else "its bounds are not set"
        yield {"site": name, "kind": site.kind, "protected": site.is_set, "how": how}
    if not isinstance(model, TracedModule):
        return
    for free in find_sites(model):
        yield {"site": free.name, "kind": free.kind, "protected": False, "how": "no bound"}
    for path, why in model.unseen.items():
        yield {"site": path or "(the model itself)", "kind": "code", "protected": False, "how": f"not seen: {why}"}
