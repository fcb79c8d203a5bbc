"""Past the paper, on ResNet-20: bounded logits, bounds learned under drawn faults, a common factor per feature map."""

import argparse

from paper_networks import NETWORKS
from paper_variants import Data
from torch import nn

import fitact_fx
from fitact_fx.learning import Learning
from fitact_fx.models import Cifar10
from fitact_fx.schemes.fitact import FitAct

TITLE = "Past the paper (ResNet-20)"
RATES = (1e-6, 1e-5, 3e-5, 1e-4)
REFERENCE = "FitAct"
LEARNINGS = {
    "under faults at 1e-5": Learning(fault_rate=1e-5),
    "under faults at 3e-5": Learning(fault_rate=3e-5),
    "a factor per feature map": Learning(together=True),
}


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """FitAct as it is, and each idea by itself; the guard with and without bounded logits."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu").batches
    logits = ("activations", "logits")
    made: dict[str, nn.Module] = {
        "neuron maxima": fitact_fx.harden(model),
        "neuron maxima + logits": fitact_fx.harden(model, sites=logits),
        "FitAct": fitact_fx.harden(model),
        "FitAct + logits": fitact_fx.harden(model, sites=logits),
        **{f"FitAct, {name}": fitact_fx.harden(model, scheme=FitAct(learning=how)) for name, how in LEARNINGS.items()},
    }
    notes = []
    for name, hard in made.items():
        fitact_fx.calibrate(hard, train)
        if name.startswith("FitAct"):
            notes.append(f"- {name}: {fitact_fx.post_train(hard, train, seed=0)}")
    for name, limits in (("guard, per channel", "channel"), ("guard, per tensor", "tensor")):
        made[name] = fitact_fx.guard(model, limits=limits)
    for name, sites in (("FitAct", "activations"), ("FitAct + logits", logits)):
        both = fitact_fx.harden(model, sites=sites, guard="parameters")
        fitact_fx.set_bounds(both, fitact_fx.bounds(made[name]))
        made[f"{name} + guard"] = both
    return made, ["Learning:\n", "\n".join(notes)]
