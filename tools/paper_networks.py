"""The networks of the paper's experiment, for CIFAR-10: how each is built, where its weights lie, what hits it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fitact_fx import models
from fitact_fx.budget import Search


@dataclass(frozen=True)
class Network:
    """One network: `title` in tables, `build` without weights, `file` in DIR/models.

    `lower`: bit error rates below the grid's that it is measured at too, since in all of the grid's no bound keeps
    anything; then Clip-Act searches its thresholds at `searched` rates, where there is something to find.
    """

    title: str
    build: Callable[[], nn.Module]
    file: str
    lower: tuple[float, ...] = ()
    searched: tuple[float, ...] = Search().rates

    def load(self, data: Path) -> nn.Module:
        """The trained network, in evaluation mode."""
        return models.load_weights(self.build(), data / "models" / self.file).eval()


NETWORKS = {
    "resnet20": Network("ResNet-20", models.resnet20, "resnet20-cifar10.safetensors"),
    "alexnet": Network("AlexNet", models.alexnet_cifar, "alexnet-cifar10.safetensors"),
    "resnet32": Network("ResNet-32", models.resnet32, "resnet32-cifar10.safetensors"),
    "resnet50": Network(
        "ResNet-50",
        models.resnet50_cifar,
        "resnet50-cifar10.safetensors",
        lower=(1e-8, 1e-7),
        searched=(1e-8, 3e-8, 1e-7, 3e-7, 1e-6),
    ),
    "vgg16": Network("VGG16", models.vgg16_cifar, "vgg16-cifar10.safetensors"),
}
