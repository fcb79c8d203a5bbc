"""Faults in activations and not in memory, on ResNet-20: what a guard over parameters cannot see."""

import argparse

from paper_networks import NETWORKS
from paper_variants import Data
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10

TITLE = "Faults in activations (ResNet-20)"
RATES = (1e-7, 1e-6, 1e-5)
REFERENCE = "FitAct"
# Another bit of another value goes wrong at each inference, before a bound sees it.
ASKED = {"at": "*", "where": "before", "permanent": False}


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """The protections of the paper's experiment."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu").batches
    fitact = fitact_fx.harden(model, data=train)
    both = fitact_fx.harden(model, guard="parameters")
    fitact_fx.set_bounds(both, fitact_fx.bounds(fitact))
    return {
        "none": model,
        "Ranger": fitact_fx.harden(model, scheme="ranger", data=train),
        "Clip-Act": fitact_fx.harden(model, scheme="clip_act", data=train),
        "FitAct": fitact,
        "guard": fitact_fx.guard(model),
        "FitAct + guard": both,
    }, []
