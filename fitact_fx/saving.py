"""Bounds on disk: one safetensors file, the recipe as JSON in its header. Nothing in it can run code.

Header entry `fitact_fx` (JSON): {"version": 1, "scheme": {"name": ..., "options": {...}}, "sites": [{"name",
"kind", "granularity", "policy", "learned"}, ...], "parameters": {name: shape}}. Tensors: `<site>.lower` and
`<site>.upper`, in the shape their granularity gives them.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import granularity as granularities
from fitact_fx import policies, schemes
from fitact_fx.bounded import SIDES, bounded_sites
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.hardening import bound_sites, sites_to_harden
from fitact_fx.spec import Spec
from fitact_fx.tracing import trace

_KEY, _VERSION = "fitact_fx", 1


def save(hard: GraphModule, path: str | os.PathLike[str]) -> None:
    """Write the bounds and the recipe of `hard`; the weights stay with the model. Replaces `path` whole or not at all.

    Raises SiteError if a bound is not set.
    """
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
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(_recipe(hard))})
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _recipe(hard: GraphModule) -> dict[str, Any]:
    scheme = hard.meta["scheme"]
    rows = [
        {
            "name": name,
            "kind": bounded.kind,
            "granularity": bounded.spec.granularity.name,
            "policy": bounded.spec.policy.name,
            "learned": bounded.spec.learned,
        }
        for name, bounded in bounded_sites(hard).items()
    ]
    return {
        "version": _VERSION,
        "scheme": {"name": scheme.name, "options": dataclasses.asdict(scheme)},
        "sites": rows,
        "parameters": {name: list(parameter.shape) for name, parameter in hard.named_parameters()},
    }


def load(path: str | os.PathLike[str], model: nn.Module) -> GraphModule:
    """`model` hardened as the saved one was, with its bounds. The model itself is not changed.

    Raises RecipeError for a missing file, one that is not ours, and a model with other sites, kinds or
    parameter shapes, naming what differs.
    """
    recipe, tensors = _read(Path(path))
    graph_module = trace(model)
    kinds = {site.name: site.kind for site in sites_to_harden(graph_module)}
    shapes = {name: list(parameter.shape) for name, parameter in graph_module.named_parameters()}
    _compare(path, "site", {row["name"]: row["kind"] for row in recipe["sites"]}, kinds, complete=False)
    _compare(path, "parameter", recipe["parameters"], shapes, complete=True)
    specs = {
        row["name"]: Spec(granularities.named(row["granularity"]), policies.named(row["policy"]), row["learned"])
        for row in recipe["sites"]
    }
    hard = bound_sites(graph_module, specs)
    scheme = type(schemes.named(recipe["scheme"]["name"]))
    hard.meta["scheme"] = scheme(**recipe["scheme"]["options"])
    for name, bounded in bounded_sites(hard).items():
        bounded.set_bounds(*(tensors.get(f"{name}.{side}") for side in SIDES))
    return hard


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    recipe = json.loads(header)
    if recipe.get("version") != _VERSION:
        raise RecipeError(f"{path} has version {recipe.get('version')}, and this release reads version {_VERSION}")
    return recipe, tensors


def _compare(path: object, word: str, saved: dict[str, Any], here: dict[str, Any], *, complete: bool) -> None:
    """RecipeError naming the first things that are missing, extra (if `complete`), or otherwise."""
    missing = [f"{word} {name} is in the file and not in the model" for name in saved if name not in here]
    extra = [f"{word} {name} is in the model and not in the file" for name in here if name not in saved and complete]
    other = [
        f"{word} {name} is {here[name]} in the model and {saved[name]} in the file"
        for name in saved
        if name in here and here[name] != saved[name]
    ]
    differences = missing + extra + other
    if differences:
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise RecipeError(f"{path} does not fit this model:\n  " + "\n  ".join(differences[:5]) + more)
