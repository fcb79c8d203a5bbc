"""Bounds on disk: one safetensors file, the recipe as JSON in its header. Nothing in it can run code.

Header entry `fitact_fx` (JSON): {"version": 1, "scheme": {"name": ..., "options": {...}}, "sites": [{"name",
"kind", "granularity", "policy", "learned", "sides"}, ...], "frontend": ..., "unbounded": {site name: kind},
"parameters": {name: shape}}; a site has "policy_numbers" too where they are not those that the policy's name stands
for, and "percentile", "share", "carries" and "includes_zero" where they are not a spec's own. Tensors:
`<site>.lower` and `<site>.upper`, in the shape their granularity gives them; the words that stand for
them where they are stored in fewer bits (see `fitact_fx.codes`), whose names the site has as "memory".
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from fitact_fx import codes, policies, schemes
from fitact_fx import granularity as granularities
from fitact_fx.bounded import SIDES, bounded_sites
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.followers import boundable
from fitact_fx.guarded import limits_of
from fitact_fx.hardening import bound_sites, sites_to_harden
from fitact_fx.passes.guarding import Guard
from fitact_fx.places import ACTIVATIONS
from fitact_fx.policies import Policy
from fitact_fx.scheme_options import plain_options, with_options
from fitact_fx.scrubbing import put_guard
from fitact_fx.sites import Site, find_sites
from fitact_fx.spec import Spec
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace

_KEY, _VERSION = "fitact_fx", 1
_LIMITS = ":limits"  # behind a parameter's name; no site's name ends so
_CALIBRATED = [
    field for field in dataclasses.fields(Spec) if field.name in ("percentile", "share", "carries", "includes_zero")
]


def save(hard: TracedModule, path: str | os.PathLike[str]) -> None:
    """Write the bounds and the recipe of `hard`; the weights stay with the model. Replaces `path` whole or not at all.

    Raises SiteError if a bound is not set, RecipeError if there is no folder to write to.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise RecipeError(f"there is no folder {target.parent};\n  make it first")
    if target.is_dir():
        raise RecipeError(f"{target} is a folder;\n  give the path of a file")
    sites = bounded_sites(hard)
    if not sites and not limits_of(hard):
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  save what fitact_fx.harden returned")
    unset = [name for name, bounded in sites.items() if not bounded.is_set]
    if unset:
        raise SiteError(f"the bounds of {unset[0]} are not set;\n  run fitact_fx.calibrate before saving")
    tensors = {
        f"{name}.{buffer}": held.detach().cpu().contiguous()
        for name, bounded in sites.items()
        for buffer, held in bounded.memory.items()
    }
    tensors |= {f"{name}{_LIMITS}": each.voted().cpu() for name, (each, *_) in limits_of(hard).items()}
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(serialised(tensors, metadata={_KEY: json.dumps(_recipe(hard))}))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _recipe(hard: TracedModule) -> dict[str, Any]:
    scheme = hard.meta.get("scheme")  # a guard alone has none
    rows = [
        {
            "name": name,
            "kind": bounded.kind,
            "granularity": bounded.spec.granularity.name,
            "policy": bounded.spec.policy.name,
            **_numbers(bounded.spec.policy),
            "learned": bounded.spec.learned,
            **_changed(bounded.spec),
            "sides": [side for side in SIDES if getattr(bounded, side) is not None],
            **({} if bounded.stored == codes.FULL else {"memory": list(bounded.memory)}),
        }
        for name, bounded in bounded_sites(hard).items()
    ]
    return {
        "version": _VERSION,
        "scheme": scheme and {"name": scheme.name, "options": plain_options(scheme)},
        "guard": {name: each.dim for name, (each, *_) in limits_of(hard).items()},
        "sites": rows,
        "frontend": hard.frontend,
        "unbounded": {site.name: site.kind for site in find_sites(hard)},
        "parameters": {name: list(parameter.shape) for name, parameter in hard.named_parameters()},
    }


def _changed(spec: Spec) -> dict[str, Any]:
    """Where calibration puts the bounds, as far as it is not at the extremes."""
    return {field.name: value for field in _CALIBRATED if (value := getattr(spec, field.name)) != field.default}


def _numbers(policy: Policy) -> dict[str, Any]:
    """The numbers of a policy, where they are not those that its name stands for."""
    numbers = policies.numbers_of(policy)
    return {} if numbers == policies.numbers_of(policies.named(policy.name)) else {"policy_numbers": numbers}


def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> TracedModule:
    """`model` hardened as the saved one was, with its bounds. The model itself is not changed.

    A model that was exported is exported again, for which it needs `example_inputs`, as `harden` did.
    Raises RecipeError for a missing file, one that is not ours or was damaged, and a model with other
    sites, kinds or parameter shapes, naming what differs.
    """
    saved, tensors = _read(Path(path))
    graph_module = _traced(path, model, saved.frontend, example_inputs)
    found = sites_to_harden(graph_module, saved.is_known) if saved.specs else find_sites(graph_module)
    kinds = {site.name: site.kind for site in found}
    kinds |= {name: site.kind for name, site in boundable(graph_module).items() if name in saved.carried}
    shapes = {name: list(parameter.shape) for name, parameter in graph_module.named_parameters()}
    _compare(path, "site", saved.kinds, kinds)
    _compare(path, "parameter", saved.parameters, shapes)
    hard = bound_sites(graph_module, saved.specs) if saved.specs else graph_module
    if saved.scheme is not None:
        hard.meta["scheme"] = saved.scheme
    for name, bounded in bounded_sites(hard).items():
        held = {buffer: tensors[f"{name}.{buffer}"] for buffer in saved.memory[name]}
        if codes.is_packed(held):
            bounded.take(held)
        else:
            bounded.set_bounds(*map(held.get, SIDES))
    if saved.guard:
        known = {name: (tensors[f"{name}{_LIMITS}"], dim) for name, dim in saved.guard.items()}
        put_guard(hard, Guard(known=known), stacklevel=2)
    return hard


def _traced(path: object, model: nn.Module, frontend: str, example_inputs: tuple[Any, ...] | None) -> TracedModule:
    if frontend == "export" and example_inputs is None:
        raise RecipeError(
            f"the model in {path} was exported, and its graph is made anew by running the model;\n"
            "  give load the example_inputs that harden got"
        )
    return trace(model, example_inputs, frontend=frontend)


class _Recipe(NamedTuple):
    """What the header says: every site's kind and parameter's shape, how sites are bounded, which tensors each has."""

    kinds: dict[str, str]
    parameters: dict[str, list[int]]
    specs: dict[str, Spec]
    scheme: Any
    memory: dict[str, list[str]]
    frontend: str
    guard: dict[str, int | None]

    @classmethod
    def parsed(cls, entry: dict[str, Any]) -> "_Recipe":
        rows = entry["sites"]
        specs = {
            row["name"]: Spec(
                granularities.named(row["granularity"]),
                policies.named(row["policy"], row.get("policy_numbers")),
                row["learned"],
                **_calibration(row),
            )
            for row in rows
        }
        named = entry["scheme"]
        alone = named is None and not rows  # a guard without bounds
        scheme = None if alone else with_options(schemes.named(named["name"]), named["options"])
        guard = dict(entry.get("guard", {}))
        memory = {row["name"]: list(row.get("memory", row["sides"])) for row in rows}
        kinds = {row["name"]: row["kind"] for row in rows} | entry["unbounded"]
        return cls(kinds, entry["parameters"], specs, scheme, memory, entry.get("frontend", "symbolic"), guard)

    @property
    def tensors(self) -> list[str]:
        """The names of all of them."""
        bounds = [f"{site}.{buffer}" for site, buffers in self.memory.items() for buffer in buffers]
        return bounds + [f"{name}{_LIMITS}" for name in self.guard]

    @property
    def carried(self) -> set[str]:
        """The sites that carry the bounds of others, which are no places of the graph."""
        return {name for name, spec in self.specs.items() if spec.carries}

    def is_known(self, site: Site) -> bool:
        """Whether the file should tell of this site: every activation, and what else was bounded."""
        return ACTIVATIONS in site.places or site.name in self.specs


def _calibration(row: dict[str, Any]) -> dict[str, Any]:
    """What `_changed` wrote, as the spec has it."""
    given = {field.name: row[field.name] for field in _CALIBRATED if field.name in row}
    return given | ({"carries": tuple(given["carries"])} if "carries" in given else {})


def _read(path: Path) -> tuple[_Recipe, dict[str, Tensor]]:
    if not path.is_file():
        raise RecipeError(f"there is no file {path};\n  pass the path that fitact_fx.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise RecipeError(f"{path} is no safetensors file or is damaged ({error});\n  save it again") from error
    if header is None:
        raise RecipeError(f"{path} was not written by fitact_fx.save: it holds no recipe")
    recipe = _recipe_in(header, path)
    wrong = sorted(set(recipe.tensors) ^ set(tensors))
    if wrong:
        what = "is missing" if wrong[0] in recipe.tensors else "is not in the recipe"
        raise RecipeError(f"{path} was changed after it was saved: the bound {wrong[0]} {what};\n  save it again")
    return recipe, tensors


def _recipe_in(header: str, path: Path) -> _Recipe:
    try:
        entry = json.loads(header)
        version = entry["version"]
        if version == _VERSION:
            return _Recipe.parsed(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise RecipeError(f"the recipe in {path} cannot be read ({reason});\n  save it again") from error
    raise RecipeError(
        f"{path} has version {version}, and this release reads version {_VERSION};\n"
        "  load it with the release that wrote it"
    )


def _compare(path: object, word: str, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """RecipeError naming the first things that are missing, extra or otherwise."""
    missing = [f"{word} {name} is in the file and not in the model" for name in saved if name not in here]
    extra = [f"{word} {name} is in the model and not in the file" for name in here if name not in saved]
    other = [
        f"{word} {name} is {here[name]} in the model and {saved[name]} in the file"
        for name in saved
        if name in here and here[name] != saved[name]
    ]
    differences = missing + extra + other
    if differences:
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise RecipeError(f"{path} does not fit this model:\n  " + "\n  ".join(differences[:5]) + more)
