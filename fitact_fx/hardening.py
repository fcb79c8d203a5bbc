"""The main job: harden a model, calibrate it, learn its bounds. Readable from top to bottom."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import granularity as granularities
from fitact_fx import schemes
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.errors import RecipeError, SiteError, UnprotectedWarning
from fitact_fx.granularity import GranularityRule
from fitact_fx.hidden import hidden_activations
from fitact_fx.layout import channel_layouts
from fitact_fx.learning import Record
from fitact_fx.passes import apply
from fitact_fx.passes.bounding import Bound
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.places import ACTIVATIONS
from fitact_fx.ranges import observed_ranges
from fitact_fx.schemes import Scheme
from fitact_fx.sites import Site, SiteRule, find_sites
from fitact_fx.spec import Spec
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace


def harden(
    model: nn.Module,
    granularity: GranularityRule | None = None,
    scheme: str | Scheme = "fitact",
    data: object | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    sites: SiteRule = ACTIVATIONS,
    frontend: str | None = None,
    max_drop: float = 0.005,
    seed: int = 0,
) -> TracedModule:
    """A copy of `model` with a bound behind every activation. The model itself is never changed.

    `granularity`: "neuron", "channel", "layer", globs over site names with one of these each (the
    last match wins), or None for the scheme's own. `scheme`: a name or an instance. With `data`, a
    re-iterable of batches, the bounds are calibrated and the scheme's learning is run with
    `max_drop` and `seed`; without, they are unset, and the result is the identity on the model's
    outputs, until `calibrate`, `set_bounds` or a loaded state sets them.

    Parameters are shared with `model`, until the hardened model is moved or cast (as a whole: `hard.half()`);
    modules and buffers are copies. Code that could not be seen stays as it is and is named in an
    UnprotectedWarning. Raises TracingError for a model that has no graph, SiteError if there is nothing to
    bound, RecipeError for unknown names.

    `sites`: which places are bounded: "activations", "linear", "norm", "residual", "logits", several of these, or
    a predicate over sites (see `find_sites`). `example_inputs` and `frontend` are those of `trace`: with inputs, a
    model that cannot be traced symbolically is exported; the result's `.frontend` says which way was taken, and
    `fitact_fx.coverage` what stays open.
    """
    chosen = schemes.named(scheme) if isinstance(scheme, str) else scheme
    if isinstance(chosen, type) or not hasattr(chosen, "place"):
        raise RecipeError(f"scheme is {chosen!r};\n  give a scheme's name or an instance, such as FitAct()")
    _refuse_hardened(model)
    graph_module = trace(model, example_inputs, frontend=frontend)
    found = sites_to_harden(graph_module, sites)
    specs = _with_granularity(chosen.place(found, graph_module), granularity)
    hard = bound_sites(graph_module, specs)
    hard.meta["scheme"] = chosen
    _warn_of_hidden(model, hard)
    if data is not None:
        calibrate(hard, data)
        if any(spec.learned for spec in specs.values()):
            post_train(hard, data, max_drop=max_drop, seed=seed)
    return hard


def calibrate(hard: nn.Module, batches: object) -> None:
    """Set every bound to the exact extremes of its clean values over `batches`.

    What is compared with is the bound widened by a small slack, see `fitact_fx.policies.slack`.
    A one-sided kind (ReLU) gets an upper bound; a two-sided one (GELU) both. Runs in evaluation mode,
    holds no activations, and replaces bounds set earlier. On any error no bound has changed.
    Raises CalibrationError for empty data or NaN, SiteError for shapes that change under neuron bounds.
    """
    _require_sites(hard)
    for seen in observed_ranges(hard, batches).values():
        two_sided = seen.bounded.minimum == -float("inf")
        seen.bounded.set_bounds(seen.low if two_sided else None, seen.high)


def post_train(hard: GraphModule, batches: object, max_drop: float = 0.005, *, seed: int = 0) -> Record:
    """Learn the bounds with everything else frozen, as the model's scheme does; the record says what was done.

    The clean accuracy on a held-out part of `batches` never falls by more than `max_drop` (a share:
    0.005 is half a point). Where a batch has no labels, the clean model's own outputs are the targets.
    """
    sites = _require_sites(hard)
    unset = [name for name, bounded in sites.items() if not bounded.is_set]
    if unset:
        raise SiteError(f"the bounds of {unset[0]} are not set;\n  run fitact_fx.calibrate before post_train")
    scheme: Scheme = hard.meta["scheme"]
    return scheme.fit(hard, batches, max_drop, seed)


def bounds(hard: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Site name -> (lower, upper) in call order, copies; None where a side is free or not set."""
    return {
        name: tuple(None if bound is None else bound.detach().clone() for bound in (bounded.lower, bounded.upper))  # type: ignore[misc]
        for name, bounded in _require_sites(hard).items()
    }


def set_bounds(hard: nn.Module, new: Mapping[str, tuple[Tensor | float | None, Tensor | float | None]]) -> None:
    """Set bounds by hand: site-name globs to (lower, upper), numbers or tensors; the last match wins.

    None leaves a side free; infinity on a side allows everything there. On any error no bound has
    changed. Raises RecipeError for a glob that matches nothing, SiteError for bounds that make no sense.
    """
    sites = _require_sites(hard)
    names = tuple(sites)
    chosen = {name: _pair(pattern, new[pattern]) for pattern in new for name in granularities.matching(pattern, names)}
    checked = {name: sites[name].checked(*pair) for name, pair in chosen.items()}
    for name, pair in checked.items():
        sites[name].refuse_other_shape(*pair)
    for name, pair in checked.items():
        sites[name].set_bounds(*pair)


def _warn_of_hidden(model: nn.Module, hard: GraphModule) -> None:
    """Silence about what stays open would look like safety."""
    hidden = [limit for limit in hidden_activations(model, hard) if limit.inside]
    if hidden:
        named = "".join(f"\n  {limit.where}: {limit.why}" for limit in hidden[:5])
        more = f"\n  and {len(hidden) - 5} more" if len(hidden) > 5 else ""
        message = f"some activations stay unbounded; `fitact-fx inspect` lists them all:{named}{more}"
        warnings.warn(message, UnprotectedWarning, stacklevel=3)


def _pair(pattern: str, given: Any) -> tuple[Tensor | float | None, Tensor | float | None]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise RecipeError(f"the bounds for {pattern!r} are {given!r};\n  give (lower, upper), None for a free side")
    for side in given:
        if side is not None and not isinstance(side, Tensor | int | float):
            raise RecipeError(f"the bounds for {pattern!r} are {given!r};\n  each is a number, a tensor or None")
    return given[0], given[1]


def sites_to_harden(graph_module: GraphModule, sites: SiteRule = ACTIVATIONS) -> tuple[Site, ...]:
    """The chosen sites of a graph that has some and has not been hardened; SiteError otherwise."""
    _refuse_hardened(graph_module)
    found = find_sites(graph_module, sites)
    if not found:
        what = "no activation was found" if sites == ACTIVATIONS else f"no site that is {sites!r} was found"
        raise SiteError(
            f"{what} in this model, so there is nothing to protect;\n"
            "  `fitact-fx inspect` shows what the graph holds and what could not be seen"
        )
    return found


def _refuse_hardened(model: object) -> None:
    if isinstance(model, nn.Module) and bounded_sites(model):
        raise SiteError("this model is hardened already;\n  harden the original model instead")


def bound_sites(graph_module: TracedModule, specs: Mapping[str, Spec]) -> TracedModule:
    """Rewrite the graph so that each site in `specs` is bounded, with the bounds not set yet."""
    layouts = channel_layouts(graph_module)
    placed = {}
    for site in find_sites(graph_module, lambda site: site.name in specs):
        layout, spec = layouts[site.node], specs[site.name]
        dim, rank = (None, None) if layout is None else (layout.dim, layout.rank)
        placed[site.name] = replace(spec, granularity=granularities.at_dim(spec.granularity, dim, rank))
    apply(graph_module, Functionalise(frozenset(placed)), Bound(placed))
    return graph_module


def _with_granularity(specs: dict[str, Spec], rule: GranularityRule | None) -> dict[str, Spec]:
    if rule is None:
        return specs
    chosen = granularities.resolve(rule, tuple(specs))
    return {name: replace(spec, granularity=chosen.get(name, spec.granularity)) for name, spec in specs.items()}


def _require_sites(hard: nn.Module) -> dict[str, Bounded]:
    sites = bounded_sites(hard)
    if not sites:
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  pass what fitact_fx.harden returned")
    return sites


__all__ = ["bounds", "calibrate", "harden", "post_train", "set_bounds"]
