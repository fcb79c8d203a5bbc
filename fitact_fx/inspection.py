"""What can be protected in a model, what it would take, and what cannot: found out without any data."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import granularity as granularities
from fitact_fx.ambience import random_states_kept
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.errors import ExampleError, FitactError, RecipeError, TracingError, UnprotectedWarning
from fitact_fx.granularity import NAMES, Shape
from fitact_fx.hardening import harden
from fitact_fx.hidden import Limit, hidden_activations, untraced_activations
from fitact_fx.kinds import FREE
from fitact_fx.layout import Layout, channel_layouts
from fitact_fx.ownership import evaluating_copy
from fitact_fx.sites import Site, find_sites
from fitact_fx.tracing import trace


@dataclass(frozen=True)
class InspectedSite:
    """One site. `shape` leaves the batch out, and is None while it is not known.

    `bounds`: granularity -> how many numbers it would store (a two-sided kind has two per bound), and
    `bytes` -> their size; None where that is not known.
    """

    name: str
    kind: str
    shape: Shape | None
    bounds: Mapping[str, int | None]
    bytes: Mapping[str, int | None]
    source: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. `obstacle` says why the model as a whole cannot be hardened, None if it can.
    `frontend` says how it became a graph, see `trace`.

    `parameters` and `parameter_bytes` are what the bounds' memory compares with.
    """

    parameters: int
    parameter_bytes: int
    sites: tuple[InspectedSite, ...]
    limits: tuple[Limit, ...]
    obstacle: str | None = None
    frontend: str | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """How many sites there are of each kind, the most frequent first."""
        return dict(Counter(site.kind for site in self.sites).most_common())

    @property
    def bounds(self) -> dict[str, int | None]:
        """Granularity -> how many numbers all bounds would be; None where one site's is not known."""
        return {name: _sum(site.bounds[name] for site in self.sites) for name in NAMES}

    @property
    def bytes(self) -> dict[str, int | None]:
        """Granularity -> the memory of all bounds."""
        return {name: _sum(site.bytes[name] for site in self.sites) for name in NAMES}

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        total = {"sites": len(self.sites), "kinds": self.kinds, "bounds": self.bounds, "bytes": self.bytes}
        return {**asdict(self), "total": total}


def inspect(model: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> Inspection:
    """Every site of `model` in evaluation mode, and what stands in the way; the model is not changed.

    With `example_inputs`, a tuple of positional inputs, the model runs once on them, and shapes are
    known. Raises FitactError if it does not take them.
    """
    counts = [(parameter.numel(), parameter.element_size()) for parameter in model.parameters()]
    weights = sum(count for count, _ in counts), sum(count * width for count, width in counts)
    own = evaluating_copy(model)
    try:
        graph_module = trace(own, example_inputs)
    except ExampleError:
        raise
    except TracingError as error:
        return Inspection(*weights, (), tuple(untraced_activations(own)), str(error))
    sites = find_sites(graph_module)
    hard, obstacle = _hardened(own, sites, example_inputs, graph_module.frontend)
    modules = bounded_sites(hard) if hard is not None else {}
    shapes = _shapes(hard, example_inputs) if hard is not None and example_inputs is not None else {}
    layouts = channel_layouts(graph_module)
    inspected, limits = [], []
    for site in sites:
        layout, shape = layouts[site.node], shapes.get(site.name)
        width = modules[site.name].placement.element_size() if site.name in modules else 4
        inspected.append(_inspected(site, layout, shape, width))
        if layout is None and (shape is None or len(shape) != 2):
            why = "where its channels lie cannot be told from the graph: choose neuron or layer granularity here"
            limits.append(Limit(site.name, why))
    limits.extend(hidden_activations(own, graph_module))
    return Inspection(*weights, tuple(inspected), tuple(limits), obstacle, graph_module.frontend)


def _hardened(
    model: nn.Module, sites: tuple[Site, ...], example_inputs: tuple[Any, ...] | None, frontend: str
) -> tuple[GraphModule | None, str | None]:
    """The model with a bound at every site, or why there is none."""
    if not sites:
        return None, "no activation was found in this model, so there is nothing to protect"
    try:
        with warnings.catch_warnings(action="ignore", category=UnprotectedWarning):  # they are told in full
            return harden(model, "layer", example_inputs=example_inputs, frontend=frontend), None
    except FitactError as error:
        return None, str(error)


def _inspected(site: Site, layout: Layout | None, shape: Shape | None, width: int) -> InspectedSite:
    sides = 2 if site.minimum == FREE else 1
    bounds = {name: _times(sides, _count(name, layout, shape)) for name in NAMES}
    size = {name: _times(width, count) for name, count in bounds.items()}
    return InspectedSite(site.name, site.kind, shape and shape[1:], bounds, size, site.source)


def _count(name: str, layout: Layout | None, shape: Shape | None) -> int | None:
    """How many bounds one side has at that granularity."""
    if name == "layer":
        return 1
    if shape is None:
        return layout.size if name == "channel" and layout is not None else None
    dim, rank = (None, None) if layout is None else (layout.dim, layout.rank)
    granularity = granularities.at_dim(granularities.named(name), dim, rank)
    try:
        return prod(granularity.bound_shape(shape))
    except RecipeError:
        return None


def _shapes(hard: GraphModule, inputs: tuple[Any, ...]) -> dict[str, Shape]:
    """Site name -> the shape of its activation, batch first."""
    seen: dict[str, Shape] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Bounded)
        seen[module.site] = tuple(args[0].shape)

    for bounded in bounded_sites(hard).values():
        bounded.register_forward_pre_hook(look)
        bounded.notice.given = True  # nobody relies on this copy, so there is nothing to warn of
    try:
        with random_states_kept(), torch.no_grad():
            hard(*inputs)
    except Exception as error:  # user code may raise anything
        given = " and ".join(f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in inputs)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FitactError(f"the model does not take {given}:\n  {reason}") from error
    return seen


def _times(factor: int, count: int | None) -> int | None:
    return None if count is None else factor * count


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


__all__ = ["InspectedSite", "Inspection", "Limit", "inspect"]
