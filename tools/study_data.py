"""How few unlabelled images suffice to calibrate and learn bounds on ResNet-20."""

import argparse
from typing import Any

from paper_networks import NETWORKS
from torch import nn

import fitact_fx
from fitact_fx.errors import CalibrationError
from fitact_fx.models import Cifar10

TITLE = "How few unlabelled images suffice (ResNet-20)"
RATES = (1e-6, 1e-5, 3e-5)
REFERENCE = "neuron, 4096 images"
COUNTS = (64, 256, 1024, 4096)
MAX_DROP = 0.01


def variants(options: argparse.Namespace, cifar: Cifar10) -> tuple[dict[str, nn.Module], list[str]]:
    """Each granularity from each number of images without labels, bounds learned where the data suffice."""
    model = NETWORKS["resnet20"].load(options.data)
    made: dict[str, nn.Module] = {"none": model}
    notes = []
    for count in COUNTS:
        images: list[Any] = list(cifar.train(count)[0].split(64))  # no labels
        for granularity in ("layer", "channel", "neuron"):
            hard = fitact_fx.harden(model, granularity=granularity)
            fitact_fx.calibrate(hard, images)
            name = f"{granularity}, {count} images"
            try:
                notes.append(f"- {name}: {fitact_fx.post_train(hard, images, max_drop=MAX_DROP, seed=0)}")
            except CalibrationError as error:  # the calibrated bounds stand
                notes.append(f"- {name}: calibrated only; {str(error).splitlines()[0]}")
            made[name] = hard
        made[f"guard + {count} images"] = _guarded(model, images)
    made["guard, no images"] = fitact_fx.guard(model)
    told = (
        f"Learning, with max_drop={MAX_DROP} of agreement with the clean model (the held-out samples were calibrated "
        "from as well, so what they lose is less than what new ones do):"
    )
    return made, ["A guard with images has layer bounds calibrated from them as well.", told, "\n".join(notes)]


def _guarded(model: nn.Module, images: list[Any]) -> nn.Module:
    """A guard, and layer bounds calibrated from that many images."""
    hard = fitact_fx.harden(model, granularity="layer", guard="parameters")
    fitact_fx.calibrate(hard, images)
    return hard
