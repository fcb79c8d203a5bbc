"""The protections of the paper's experiment, each made once and kept as a file.

All of them see the same 16,000 training images: Ranger profiles them, Clip-Act profiles and searches, FitAct and ProAct
calibrate and learn. None sees a test image.

All may cost half a point of clean accuracy on training images that were held back. The network knows these, so that on
test images it may be more; what is learned is held to how far it moves the outputs as well (see fitact_fx/learning.py).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_networks import NETWORKS
from torch import nn

import fitact_fx
from fitact_fx.budget import Search
from fitact_fx.models import Cifar10
from fitact_fx.schemes.clip_act import ClipAct
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
    """That variant of `model`, from its file if there is one; what making it did is told in a file beside it."""
    if name == "none":
        return model
    if name == "guard":
        return fitact_fx.guard(model)
    if name == "FitAct + guard":
        return _guarded_fitact(model, data, store, network)
    slug = name.lower().replace(" ", "-").replace("(", "").replace(")", "")
    path = store / f"{network}-{slug}.safetensors"
    if path.exists():
        return fitact_fx.load(path, model)
    started = time.perf_counter()
    protected, told = _maker(name, network)(model, data)
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


def _learned(**how: Any) -> Callable[[nn.Module, Data], tuple[TracedModule, str]]:
    def make(model: nn.Module, data: Data) -> tuple[TracedModule, str]:
        hard = fitact_fx.harden(model, **how)
        fitact_fx.calibrate(hard, data.batches)
        record = fitact_fx.post_train(hard, data.batches, max_drop=MAX_DROP, seed=SEED)
        return hard, str(record)

    return make


def _calibrated(**how: Any) -> Callable[[nn.Module, Data], tuple[TracedModule, str]]:
    def make(model: nn.Module, data: Data) -> tuple[TracedModule, str]:
        hard = fitact_fx.harden(model, **how)
        fitact_fx.calibrate(hard, data.batches)
        return hard, ""

    return make


def _maker(name: str, network: str) -> Callable[[nn.Module, Data], tuple[TracedModule, str]]:
    if name == "Clip-Act":
        return _learned(scheme=ClipAct(search=Search(rates=NETWORKS[network].searched)))
    return _MAKERS[name]


_MAKERS: dict[str, Callable[[nn.Module, Data], tuple[TracedModule, str]]] = {
    "Ranger": _calibrated(scheme="ranger"),
    "neuron maxima": _calibrated(granularity="neuron"),
    "FitAct": _learned(scheme="fitact"),
    "FitAct (channel)": _learned(scheme="fitact", granularity="channel"),
    "FitAct (layer)": _learned(scheme="fitact", granularity="layer"),
    "ProAct": _learned(scheme="proact"),
}
