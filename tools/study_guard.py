"""The parameter range guard on ResNet-20: per channel, per tensor, and beside FitAct's bounds."""

import argparse

from paper_networks import NETWORKS
from paper_variants import Data, made
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10

TITLE = "The guard over parameters (ResNet-20)"
RATES = (1e-5, 3e-5, 1e-4)
REFERENCE = "guard, per channel"


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """FitAct's bounds alone and with a guard, and the guard with limits per channel and per tensor."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu")
    fitact, both = (made(name, model, train, options.store, "resnet20") for name in ("FitAct", "FitAct + guard"))
    return {
        "none": model,
        "FitAct": fitact,
        "guard, per channel": fitact_fx.guard(model),
        "guard, per tensor": fitact_fx.guard(model, limits="tensor"),
        "FitAct + guard": both,
    }, []
