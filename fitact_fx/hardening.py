"""The main job: harden a model, calibrate it, learn its bounds. Readable from top to bottom."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import granularity as granularities
from fitact_fx import policies, schemes
from fitact_fx.asked_bounds import warn_of_cost
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.carrying import carry
from fitact_fx.clean_accuracy import check_max_drop
from fitact_fx.dimensions import Layout
from fitact_fx.errors import RecipeError, SiteError, UnprotectedWarning, site_message
from fitact_fx.followers import boundable
from fitact_fx.granularity import GranularityRule
from fitact_fx.guarded import limits_of
from fitact_fx.hidden import hidden_activations
from fitact_fx.layout import channel_layouts
from fitact_fx.options import check_seed
from fitact_fx.packing import in_full_precision
from fitact_fx.passes import apply
from fitact_fx.passes.bounding import Bound
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.passes.guarding import Guard, refuse_unguardable
from fitact_fx.percentiles import percentile_bounds
from fitact_fx.places import ACTIVATIONS
from fitact_fx.policies import FeatureMaps
from fitact_fx.ranges import Range, observed_ranges
from fitact_fx.schemes import Outcome, Scheme
from fitact_fx.scrubbing import put_guard
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
    guard: str | Guard | None = None,
) -> TracedModule:
    """A copy of `model` with a bound behind every activation. The model itself is never changed.

    `granularity`: "neuron", "channel", "layer", globs over site names with one of these each (the
    last match wins), or None for the scheme's own. `scheme`: a name or an instance. With `data`, a
    re-iterable of batches, the bounds are calibrated and the scheme's learning is run with
    `max_drop` and `seed`; without, they are unset, and the result is the identity on the model's
    outputs, until `calibrate`, `set_bounds` or a loaded state sets them. Bounds at a percentile or a share of the
    maximum are not learned: what they cost on all of `data` is measured, and a CostlyWarning tells where that is more
    than `max_drop`. (Not where the outputs are no class scores; where targets are no classes, the clean model's own
    answers are the right ones.)

    Parameters are shared with `model`, until the hardened model is moved or cast (as a whole: `hard.half()`);
    modules and buffers are copies. Code that could not be seen stays as it is and is named in an
    UnprotectedWarning. Raises TracingError for a model that has no graph, SiteError if there is nothing to bound,
    RecipeError for unknown names and for a `max_drop` or `seed` that makes no sense.

    `sites`: which places are bounded: "activations", "linear", "norm", "residual", "logits", several of these, or
    a predicate over sites (see `find_sites`). `example_inputs` and `frontend` are those of `trace`: with inputs, a
    model that cannot be traced symbolically is exported; the result's `.frontend` says which way was taken, and
    `fitact_fx.coverage` what stays open.

    `guard`: "parameters", or an instance such as `Guard(limits="tensor")`, to check each parameter as well before it
    is used, see `fitact_fx.guard`. The guard comes last: bounds are found and learned without it.
    """
    chosen = schemes.named(scheme) if isinstance(scheme, str) else scheme
    if isinstance(chosen, type) or not hasattr(chosen, "place"):
        raise RecipeError(f"scheme is {chosen!r};\n  give a scheme's name or an instance, such as FitAct()")
    check_max_drop(max_drop)
    check_seed(seed)
    _refuse_hardened(model)
    guarding = _guard_named(guard)
    graph_module = trace(model, example_inputs, frontend=frontend)
    if guarding is not None:
        refuse_unguardable(graph_module)
    found = sites_to_harden(graph_module, sites)
    specs = _with_granularity(chosen.place(found, graph_module), granularity)
    hard = bound_sites(graph_module, specs)
    hard.meta["scheme"] = chosen
    _warn_of_hidden(model, hard)
    if data is not None:
        calibrate(hard, data)
        if any(spec.learned for spec in specs.values()):
            post_train(hard, data, max_drop=max_drop, seed=seed)
        warn_of_cost(hard, data, max_drop, stacklevel=2)
    if guarding is not None:
        put_guard(hard, guarding, stacklevel=2)
    return hard


def _guard_named(guard: str | Guard | None) -> Guard | None:
    if guard is None or isinstance(guard, Guard):
        return guard
    if guard != "parameters":
        raise RecipeError(f'guard is {guard!r};\n  give "parameters" or an instance, such as Guard(limits="tensor")')
    return Guard()


def calibrate(hard: nn.Module, batches: object) -> None:
    """Set every bound from its clean values over `batches`: to their exact extremes, where the scheme says no other.

    What is compared with is the bound widened by a small slack, see `fitact_fx.policies.limits.slack`.
    A one-sided kind (ReLU) gets an upper bound; a two-sided one (GELU) both. Runs in evaluation mode,
    holds no activations, and replaces bounds set earlier. On any error no bound has changed.

    Where a site's spec asks for a percentile p below 100, the data run a second time: at least p % of the values lie
    at the upper bound or below it, and for two-sided kinds at least p % at the lower one or above (so it is the
    100 - p percentile), each to (greatest - least) / 2048; see `fitact_fx.percentiles`. The spec's `share` then
    multiplies both bounds. Sites that carry the bounds of others take those over at last.
    Raises CalibrationError for empty data, NaN, or data that differ between the passes, SiteError for shapes that
    change under neuron bounds.
    """
    sites = _require_sites(hard)
    ranges = observed_ranges(hard, batches)
    pairs = percentile_bounds(hard, batches, ranges)
    checked = {name: _calibrated(seen, *pairs.get(name, (seen.low, seen.high))) for name, seen in ranges.items()}
    for name, pair in checked.items():
        sites[name].set_bounds(*pair)
    carry(sites)


def _calibrated(seen: Range, low: Tensor | None, high: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The bounds of one site, from the values seen; nothing is set."""
    assert low is not None  # a site that did not run has been refused
    assert high is not None
    share = seen.bounded.spec.share
    two_sided = seen.bounded.minimum == -float("inf")
    return seen.bounded.checked(low * share if two_sided else None, high * share)


def post_train(hard: GraphModule, batches: object, max_drop: float = 0.005, *, seed: int = 0) -> Outcome:
    """Learn the bounds with everything else frozen, as the model's scheme does; the record says what was done.

    The clean accuracy on a held-out part of `batches` never falls by more than `max_drop` (a share:
    0.005 is half a point). Every held-out sample counts: where one has no label (its batch has none, or all of its own
    are -100), the clean model's own answers are the right ones. Where only some of a sample's labels are -100, they
    mark places that mean nothing, such as padding, which are left out. A network is right about images that it was
    trained on whatever bounds do to it, so FitAct holds to how far its outputs are moved as well (see
    `Learning.distortion`; a CostlyWarning where that leaves nothing of what was learned); other schemes see the
    accuracy alone, so give images that are new to the network, or allow less. Bounds per neuron or channel may cost
    more on new samples than on those that they were calibrated from: a CostlyWarning where there are too few of them,
    which takes three more passes over the data.

    On any error no bound has changed. Raises RecipeError for a `max_drop` that is no share, a `seed` that is no whole
    number, and where the scheme learns nothing; SiteError for bounds that are not set; CalibrationError for too little
    data, for labels that do not fit, and if the calibrated bounds, the loosest there are, cost more than `max_drop`.
    """
    check_seed(seed)
    sites = _require_sites(hard)
    unset = [name for name, bounded in sites.items() if not bounded.is_set]
    if unset:
        raise SiteError(f"the bounds of {unset[0]} are not set;\n  run fitact_fx.calibrate before post_train")
    scheme: Scheme = hard.meta["scheme"]
    with in_full_precision(hard):
        return scheme.fit(hard, batches, max_drop, seed)


def bounds(hard: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Site name -> (lower, upper) in call order, copies; None where a side is free or not set."""
    return {
        name: tuple(None if bound is None else bound.detach().clone() for bound in (bounded.lower, bounded.upper))  # type: ignore[misc]
        for name, bounded in _require_sites(hard).items()
    }


def set_bounds(hard: nn.Module, new: Mapping[str, tuple[Tensor | float | None, Tensor | float | None]]) -> None:
    """Set bounds by hand: site-name globs to (lower, upper), numbers or tensors; the last match wins.

    None leaves a side free; infinity on a side allows everything there. Sites that carry the bounds of a site set
    here (see `Spec.carries`) follow it, unless they are set here themselves. On any error no bound has
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
    carry(sites, changed=checked)


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
    if isinstance(model, nn.Module) and limits_of(model):
        raise SiteError('this model is guarded already;\n  harden the original model, with guard="parameters"')


def bound_sites(graph_module: TracedModule, specs: Mapping[str, Spec]) -> TracedModule:
    """Rewrite the graph so that each site in `specs` is bounded, with the bounds not set yet."""
    layouts = channel_layouts(graph_module)
    chosen = [site for name, site in boundable(graph_module).items() if name in specs]
    placed = {site.name: _placed(site, specs[site.name], layouts[site.node]) for site in chosen}
    apply(graph_module, Functionalise(frozenset(placed)), Bound(placed))
    return graph_module


def _placed(site: Site, spec: Spec, layout: Layout | None) -> Spec:
    """The spec, told where the channels lie."""
    if layout is None and isinstance(spec.policy, FeatureMaps):
        problem = f"policy {spec.policy.name!r} needs to know where its channels lie, which the graph does not tell"
        remedy = 'harden with policy="zero" or "clamp", or leave it out (sites=lambda site: site.name != ...)'
        raise SiteError(site_message(site.name, site.source, problem, remedy))
    dim, rank = (None, None) if layout is None else (layout.dim, layout.rank)
    granularity, policy = granularities.at_dim(spec.granularity, dim, rank), policies.at_dim(spec.policy, dim, rank)
    return replace(spec, granularity=granularity, policy=policy)


def _with_granularity(specs: dict[str, Spec], rule: GranularityRule | None) -> dict[str, Spec]:
    if rule is None:
        return specs
    # What is carried is one range, whatever the granularity of its sources.
    own = tuple(name for name, spec in specs.items() if not spec.carries)
    chosen = granularities.resolve(rule, own)
    return {name: replace(spec, granularity=chosen.get(name, spec.granularity)) for name, spec in specs.items()}


def _require_sites(hard: nn.Module) -> dict[str, Bounded]:
    sites = bounded_sites(hard)
    if not sites:
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  pass what fitact_fx.harden returned")
    return sites


__all__ = ["bounds", "calibrate", "harden", "post_train", "set_bounds"]
