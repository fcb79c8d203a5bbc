"""Past the paper, on ResNet-20: bounded logits, bounds learned under drawn faults, a common factor per feature map."""

import argparse

from paper_networks import NETWORKS
from paper_variants import SEED, Data, made
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
    train = Data.of(cifar, "cpu")
    logits = ("activations", "logits")
    found = {name: made(name, model, train, options.store, "resnet20") for name in ("neuron maxima", "FitAct")}
    new = {
        "neuron maxima + logits": fitact_fx.harden(model, sites=logits),
        "FitAct + logits": fitact_fx.harden(model, sites=logits),
        **{f"FitAct, {name}": fitact_fx.harden(model, scheme=FitAct(learning=how)) for name, how in LEARNINGS.items()},
    }
    notes = []
    for name, hard in new.items():
        fitact_fx.calibrate(hard, train.batches)
        if name.startswith("FitAct"):
            notes.append(f"- {name}: {fitact_fx.post_train(hard, train.batches, seed=SEED)}")
    found |= new | {"guard": fitact_fx.guard(model)}
    for name, sites in (("FitAct", "activations"), ("FitAct + logits", logits)):
        both = fitact_fx.harden(model, sites=sites, guard="parameters")
        fitact_fx.set_bounds(both, fitact_fx.bounds(found[name]))
        found[f"{name} + guard"] = both
    return found, ["Learning:\n", "\n".join(notes)]
