"""Bounds that take less memory: fewer bits each, or fewer bounds, on ResNet-20."""

import argparse
import copy

from paper_networks import NETWORKS
from paper_variants import Data, made
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10

TITLE = "Bounds in fewer bytes (ResNet-20)"
RATES = (1e-6, 1e-5, 3e-5)
REFERENCE = "neuron, float32"
BOUNDS = {"neuron": "FitAct", "channel": "FitAct (channel)", "layer": "FitAct (layer)", "ProAct": "ProAct"}
STORED = ("float32", "bfloat16", "int8")


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """FitAct's learned neuron bounds in three formats, channel and layer bounds, and ProAct's mixture."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu")
    found: dict[str, nn.Module] = {}
    for title, name in BOUNDS.items():
        learned = made(name, model, train, options.store, "resnet20")
        for stored in STORED if title == "neuron" else ("float32", "int8"):
            found[f"{title}, {stored}"] = copy.deepcopy(learned)
            fitact_fx.store_bounds(found[f"{title}, {stored}"], stored)
    return found, []
