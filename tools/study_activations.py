"""Faults in activations and not in memory, on ResNet-20: what a guard over parameters cannot see."""

import argparse

from paper_networks import NETWORKS
from paper_variants import Data, made
from torch import nn

from fitact_fx.models import Cifar10

TITLE = "Faults in activations (ResNet-20)"
RATES = (1e-7, 1e-6, 1e-5)
REFERENCE = "FitAct"
# Another bit of another value goes wrong at each inference, before a bound sees it.
ASKED = {"at": "*", "where": "before", "permanent": False}
VARIANTS = ("none", "Ranger", "Clip-Act", "neuron maxima", "FitAct", "guard", "FitAct + guard")


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """The protections of the paper's experiment."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu")
    return {name: made(name, model, train, options.store, "resnet20") for name in VARIANTS}, []
