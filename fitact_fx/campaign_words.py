"""From the words of a campaign to the arguments of `run_campaign`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from fitact_fx.campaign_data import load_data
from fitact_fx.campaigns.kinds import Exhaustive, Kind, SingleFaults, find_kind
from fitact_fx.campaigns.samples import Samples
from fitact_fx.errors import CampaignError, FitactError
from fitact_fx.fault_words import fault_maker
from fitact_fx.replaying import seeded_model
from fitact_fx.saving import load

SAME = (
    "format targets at where permanent trials until minimum measure confidence seed threads compile suffixes skip "
    "suffix_memory"
).split()
"""What is called the same in words and in `run_campaign`."""


def arguments(words: Mapping[str, Any]) -> dict[str, Any]:
    """What `run_campaign` is to be called with, but for where it computes. FitactError for words that make no sense."""
    asked = {"fault": _fault(words), **_how_often(words)}
    if "at" not in words and ("where" in words or "permanent" in words):
        raise CampaignError("nothing says which activations;\n  add --at GLOB, for all of them --at '*'")
    named = _variants(words)
    data = load_data(words)
    return {
        "variants": _models(named, data),
        "data": data,
        **asked,
        **{name: words[name] for name in SAME if name in words},
    }


@contextmanager
def computing(words: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Who computes, as arguments of `run_campaign`: processes here, or the workers of a Dask scheduler."""
    if "scheduler" not in words:
        yield {"workers": words["workers"]} if "workers" in words else {}
        return
    if "workers" in words:
        raise CampaignError("workers and a scheduler both say who computes;\n  leave one of them out")
    try:
        from distributed import Client
    except ImportError as error:
        raise CampaignError(
            "a scheduler needs Dask;\n  install it with: pip install 'fitact-fx[distributed]'"
        ) from error
    address = words["scheduler"]
    try:
        client: Any = Client(address, timeout="10s")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise CampaignError(f"no scheduler answers at {address}: {error};\n  start one with: dask scheduler") from error
    with client:
        yield {"executor": client}


def _fault(words: Mapping[str, Any]) -> Any:
    options = {name: words[name] for name in ("bits", "width") if name in words}
    make = fault_maker(words.get("fault", "bit-flip"), options)
    return partial(make, **options) if options else make


def _how_often(words: Mapping[str, Any]) -> dict[str, Any]:
    """`rates`, or another kind of question."""
    name = words.get("kind", "rates")
    kind = find_kind(name)
    for key, of in (("rates", "rates"), ("per", "single"), ("margin", "single")):
        if key in words and name != of:
            flag = "--rate" if key == "rates" else f"--{key}"
            raise CampaignError(f"kind {name} has no {key};\n  leave out {flag}, or choose --kind {of}")
    if kind is SingleFaults:
        return {"kind": _single(words)}
    if kind is Exhaustive:
        return {"kind": Exhaustive()}
    if "rates" not in words:
        raise CampaignError(
            "nothing says how often faults strike;\n  add --rate 1e-6, once per rate, or --kind single, or exhaustive"
        )
    return {"rates": words["rates"]}


def _single(words: Mapping[str, Any]) -> Kind:
    return SingleFaults(**{name: words[name] for name in ("per", "margin", "confidence") if name in words})


def _variants(words: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name -> model, and weights and hardened where they are given."""
    shared = {key: words[key] for key in ("model", "weights") if key in words}
    named = words.get("variants") or ({"plain": {}} if shared else {})
    if not named:
        raise CampaignError("nothing says what to measure;\n  add --variant plain=SPEC, once per variant")
    # Weights are of a model: those of all are not for a variant with a model of its own.
    full = {name: said if "model" in said else shared | said for name, said in named.items()}
    for name, said in full.items():
        if "model" not in said:
            raise CampaignError(f"variant {name!r} has no model;\n  add --variant {name}=SPEC, or --model SPEC for all")
    return full


def _models(named: Mapping[str, Mapping[str, str]], data: object) -> dict[str, nn.Module]:
    """Each model is made once: variants that differ in their bounds share it."""
    made: dict[tuple[str, str | None], nn.Module] = {}
    models = {}
    for name, said in named.items():
        key = said["model"], said.get("weights")
        try:
            if key not in made:
                made[key] = seeded_model(key[0], weights=key[1])
            models[name] = _hardened(made[key], said.get("hardened"), data)
        except FitactError as error:
            raise CampaignError(f"variant {name!r}: {error}") from error
    return models


def _hardened(model: nn.Module, file: str | None, data: object) -> nn.Module:
    if file is None:
        return model
    return load(file, model, Samples.read(data).batches[0].args or None)
