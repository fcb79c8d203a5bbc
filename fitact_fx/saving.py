"""Bounds on disk: one safetensors file, the recipe as JSON in its header. Nothing in it can run code.

Header entry `fitact_fx` (JSON): {"version": 1, "scheme": {"name": ..., "options": {...}}, "sites": [{"name",
"kind", "granularity", "policy", "learned", "sides"}, ...], "frontend": ..., "unbounded": {site name: kind},
"parameters": {name: shape}}. Tensors: `<site>.lower` and `<site>.upper`, in the shape their granularity gives them.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from fitact_fx import granularity as granularities
from fitact_fx import policies, schemes
from fitact_fx.bounded import SIDES, bounded_sites
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.hardening import bound_sites, sites_to_harden
from fitact_fx.places import ACTIVATIONS
from fitact_fx.sites import Site, find_sites
from fitact_fx.spec import Spec
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace

_KEY, _VERSION = "fitact_fx", 1


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
    if not sites:
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  save what fitact_fx.harden returned")
    unset = [name for name, bounded in sites.items() if not bounded.is_set]
    if unset:
        raise SiteError(f"the bounds of {unset[0]} are not set;\n  run fitact_fx.calibrate before saving")
    tensors = {
        f"{name}.{side}": bound.detach().cpu().contiguous()
        for name, bounded in sites.items()
        for side in SIDES
        if (bound := getattr(bounded, side)) is not None
    }
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(serialised(tensors, metadata={_KEY: json.dumps(_recipe(hard))}))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _recipe(hard: TracedModule) -> dict[str, Any]:
    scheme = hard.meta["scheme"]
    rows = [
        {
            "name": name,
            "kind": bounded.kind,
            "granularity": bounded.spec.granularity.name,
            "policy": bounded.spec.policy.name,
            "learned": bounded.spec.learned,
            "sides": [side for side in SIDES if getattr(bounded, side) is not None],
        }
        for name, bounded in bounded_sites(hard).items()
    ]
    return {
        "version": _VERSION,
        "scheme": {"name": scheme.name, "options": dataclasses.asdict(scheme)},
        "sites": rows,
        "frontend": hard.frontend,
        "unbounded": {site.name: site.kind for site in find_sites(hard)},
        "parameters": {name: list(parameter.shape) for name, parameter in hard.named_parameters()},
    }


def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> TracedModule:
    """`model` hardened as the saved one was, with its bounds. The model itself is not changed.

    A model that was exported is exported again, for which it needs `example_inputs`, as `harden` did.
    Raises RecipeError for a missing file, one that is not ours or was damaged, and a model with other
    sites, kinds or parameter shapes, naming what differs.
    """
    saved, tensors = _read(Path(path))
    graph_module = _traced(path, model, saved.frontend, example_inputs)
    kinds = {site.name: site.kind for site in sites_to_harden(graph_module, saved.is_known)}
    shapes = {name: list(parameter.shape) for name, parameter in graph_module.named_parameters()}
    _compare(path, "site", saved.kinds, kinds)
    _compare(path, "parameter", saved.parameters, shapes)
    hard = bound_sites(graph_module, saved.specs)
    hard.meta["scheme"] = saved.scheme
    for name, bounded in bounded_sites(hard).items():
        bounded.set_bounds(*(tensors.get(f"{name}.{side}") for side in SIDES))
    return hard


def _traced(path: object, model: nn.Module, frontend: str, example_inputs: tuple[Any, ...] | None) -> TracedModule:
    if frontend == "export" and example_inputs is None:
        raise RecipeError(
            f"the model in {path} was exported, and its graph is made anew by running the model;\n"
            "  give load the example_inputs that harden got"
        )
    return trace(model, example_inputs, frontend=frontend)


class _Recipe(NamedTuple):
    """What the header says: every site's kind and parameter's shape, how sites are bounded, which tensors there are."""

    kinds: dict[str, str]
    parameters: dict[str, list[int]]
    specs: dict[str, Spec]
    scheme: Any
    tensors: list[str]
    frontend: str

    @classmethod
    def parsed(cls, entry: dict[str, Any]) -> "_Recipe":
        rows = entry["sites"]
        specs = {
            row["name"]: Spec(granularities.named(row["granularity"]), policies.named(row["policy"]), row["learned"])
            for row in rows
        }
        scheme = _with_options(schemes.named(entry["scheme"]["name"]), entry["scheme"]["options"])
        tensors = [f"{row['name']}.{side}" for row in rows for side in row["sides"]]
        kinds = {row["name"]: row["kind"] for row in rows} | entry["unbounded"]
        return cls(kinds, entry["parameters"], specs, scheme, tensors, entry.get("frontend", "symbolic"))

    def is_known(self, site: Site) -> bool:
        """Whether the file should tell of this site: every activation, and what else was bounded."""
        return ACTIVATIONS in site.places or site.name in self.specs


def _with_options(value: Any, options: dict[str, Any]) -> Any:
    """The same scheme with these options, which may be dataclasses in turn."""
    fields = {name: getattr(value, name) for name in options}
    nested = {
        name: _with_options(fields[name], options[name]) for name in options if dataclasses.is_dataclass(fields[name])
    }
    return dataclasses.replace(value, **{**options, **nested})


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
