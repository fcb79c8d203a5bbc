"""What becomes of a value beyond its bound, on ResNet-20 with one bound per layer and with one per neuron."""

import argparse

from paper_networks import NETWORKS
from paper_variants import Data
from torch import nn

import fitact_fx
from fitact_fx.models import Cifar10
from fitact_fx.schemes.ranger import Ranger

TITLE = "Policies beyond the bound (ResNet-20)"
RATES = (1e-6, 1e-5, 3e-5)
REFERENCE = "layer, zero"
POLICIES = ("zero", "clamp", "backflip", "rescale", "average")


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """The same profiled maxima under every policy."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu").batches
    made: dict[str, nn.Module] = {}
    for granularity in ("layer", "neuron"):
        for policy in POLICIES:
            scheme = Ranger(granularity=granularity, policy=policy)
            made[f"{granularity}, {policy}"] = fitact_fx.harden(model, scheme=scheme, data=train)
    return made, []
