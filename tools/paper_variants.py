"""The protections of the paper's experiment, each made once and kept as a file.

All of them see the same 16,000 training images: Ranger profiles them, Clip-Act profiles and searches, FitAct and ProAct
calibrate and learn. None sees a test image.

All may cost half a point of clean accuracy on training images that were held back. The network knows these, so that on
test images it may be more; what is learned is held to how far it moves the outputs as well (see fitact_fx/learning.py).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_networks import NETWORKS
from torch import nn

import fitact_fx
from fitact_fx.budget import Search
from fitact_fx.models import Cifar10
from fitact_fx.schemes import Scheme
from fitact_fx.schemes.clip_act import ClipAct
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.traced import TracedModule

IMAGES, BATCH, MAX_DROP, SEED = 16_000, 125, 0.005, 0


@dataclass(frozen=True)
class Data:
    """The training images that protections are made from, in batches."""

    batches: list[Any]

    @classmethod
    def of(cls, cifar: Cifar10, device: str) -> "Data":
        """The first 16,000 of them, on that device."""
        parts = (part.to(device).split(BATCH) for part in cifar.train(IMAGES))
        return cls(list(zip(*parts, strict=True)))


def made(name: str, model: nn.Module, data: Data, store: Path, network: str) -> nn.Module:
    """That variant of `model`, from its file if that is of today's scheme; what making it did is told beside it."""
    if name == "none":
        return model
    if name == "guard":
        return fitact_fx.guard(model)
    if name == "FitAct + guard":
        return _guarded_fitact(model, data, store, network)
    slug = name.lower().replace(" ", "-").replace("(", "").replace(")", "")
    path = store / f"{network}-{slug}.safetensors"
    scheme = _scheme(name, network)
    if path.exists() and (kept := fitact_fx.load(path, model)).meta["scheme"] == scheme:
        return kept
    started = time.perf_counter()
    protected, told = _make(name, model, data, scheme)
    fitact_fx.save(protected, path)
    note = {"name": name, "seconds": time.perf_counter() - started, "told": told}
    path.with_suffix(".json").write_text(json.dumps(note))
    return protected


def _guarded_fitact(model: nn.Module, data: Data, store: Path, network: str) -> nn.Module:
    """The very bounds of the variant FitAct, and a guard."""
    fitact = made("FitAct", model, data, store, network)
    both = fitact_fx.harden(model, guard="parameters")
    fitact_fx.set_bounds(both, fitact_fx.bounds(fitact))
    return both


def _make(name: str, model: nn.Module, data: Data, scheme: Scheme) -> tuple[TracedModule, str]:
    """A protection, and what was learned on the way to it."""
    hard = fitact_fx.harden(model, scheme=scheme)
    fitact_fx.calibrate(hard, data.batches)
    if name in CALIBRATED:
        return hard, ""
    return hard, str(fitact_fx.post_train(hard, data.batches, max_drop=MAX_DROP, seed=SEED))


def _scheme(name: str, network: str) -> Scheme:
    if name == "Clip-Act":
        return ClipAct(search=Search(rates=NETWORKS[network].searched))
    return SCHEMES[name]


SCHEMES: dict[str, Scheme] = {
    "Ranger": Ranger(),
    "neuron maxima": FitAct(),
    "FitAct": FitAct(),
    "FitAct (channel)": FitAct("channel"),
    "FitAct (layer)": FitAct("layer"),
    "ProAct": ProAct(),
}
CALIBRATED = ("Ranger", "neuron maxima")
