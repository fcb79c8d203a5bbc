"""A vision transformer: bounding GELU alone against linear outputs and GELU, and everything."""

import argparse
from typing import Any

from paper_variants import Data
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10, load_weights, vit_tiny_cifar

TITLE = "Where to bound a vision transformer"
RATES = (1e-6, 1e-5, 3e-5, 1e-4)
REFERENCE = "GELU, FitAct"
PLACES: dict[str, Any] = {
    "GELU": "activations",
    "linear + GELU": ("activations", "linear"),
    "all places": ("activations", "linear", "norm", "residual", "logits"),
}


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """Each set of places, clamped by layer (Ranger) and with learned neuron bounds (FitAct); the guard too."""
    if options.weights is None:
        raise SystemExit("study.py transformer: give --weights; tools/train_cifar10.py vit makes them")
    model = load_weights(vit_tiny_cifar(), options.weights).eval()
    train = Data.of(cifar, "cpu").batches
    made: dict[str, nn.Module] = {"none": model}
    notes = []
    for name, places in PLACES.items():
        made[f"{name}, Ranger"] = fitact_fx.harden(model, scheme="ranger", sites=places, data=train)
        hard = fitact_fx.harden(model, sites=places)
        fitact_fx.calibrate(hard, train)
        notes.append(f"- {name}, FitAct: {fitact_fx.post_train(hard, train, seed=0)}")
        made[f"{name}, FitAct"] = hard
    made["guard"] = fitact_fx.guard(model)
    both = fitact_fx.harden(model, sites=PLACES["linear + GELU"], guard="parameters")
    fitact_fx.set_bounds(both, fitact_fx.bounds(made["linear + GELU, FitAct"]))
    made["linear + GELU, FitAct + guard"] = both
    return made, ["Learning:\n", "\n".join(notes)]
