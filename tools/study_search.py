"""What more of a search finds for Clip-Act on ResNet-20: whether its default handicaps it in the paper's experiment."""

import argparse

from paper_networks import NETWORKS
from paper_variants import MAX_DROP, SEED, Data, made
from torch import nn

import fitact_fx
from fitact_fx.budget import Search
from fitact_fx.models import Cifar10
from fitact_fx.schemes.clip_act import ClipAct

TITLE = "Clip-Act's budget (ResNet-20)"
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
REFERENCE = "Clip-Act, default"
SEARCHES = {
    "the rates of the experiment": Search(rates=RATES),
    "these, 8 draws, 128 images": Search(rates=RATES, draws=8, images=128),
}


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """The default search, one at the rates that the experiment is measured at, and one of three times the work."""
    model = NETWORKS["resnet20"].load(options.data)
    train = Data.of(cifar, "cpu")
    found = {
        "Clip-Act, default": made("Clip-Act", model, train, options.store, "resnet20"),
        "FitAct": made("FitAct", model, train, options.store, "resnet20"),
    }
    notes = []
    for name, search in SEARCHES.items():
        hard = fitact_fx.harden(model, scheme=ClipAct(search=search))
        fitact_fx.calibrate(hard, train.batches)
        record = fitact_fx.post_train(hard, train.batches, max_drop=MAX_DROP, seed=SEED)
        found[f"Clip-Act, {name}"] = hard
        notes.append(f"- {name}: {record}")
    return found, ["\n".join(notes)]
