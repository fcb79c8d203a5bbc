"""Bounds that take less memory: fewer bits each, or fewer bounds, on ResNet-20."""

import argparse
import copy

from paper_networks import NETWORKS
from paper_variants import Data
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10

TITLE = "Bounds in fewer bytes (ResNet-20)"
RATES = (1e-6, 1e-5, 3e-5)
REFERENCE = "neuron, float32"
STORED = ("float32", "bfloat16", "int8")


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """FitAct's learned neuron bounds in three formats, channel and layer bounds, and ProAct's mixture."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu").batches
    made: dict[str, nn.Module] = {}
    for granularity in ("neuron", "channel", "layer"):
        learned = fitact_fx.harden(model, granularity=granularity, data=train)
        for stored in STORED if granularity == "neuron" else ("float32", "int8"):
            made[f"{granularity}, {stored}"] = copy.deepcopy(learned)
            fitact_fx.store_bounds(made[f"{granularity}, {stored}"], stored)
    made["ProAct, float32"] = fitact_fx.harden(model, scheme="proact", data=train)
    made["ProAct, int8"] = copy.deepcopy(made["ProAct, float32"])
    fitact_fx.store_bounds(made["ProAct, int8"], "int8")
    return made, []
