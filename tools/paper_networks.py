"""The networks of the paper's experiment, for CIFAR-10: how each is built and where its weights lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fitact_fx import models


@dataclass(frozen=True)
class Network:
    """One network: `title` in tables, `build` without weights, `file` in DIR/models."""

    title: str
    build: Callable[[], nn.Module]
    file: str

    def load(self, data: Path) -> nn.Module:
        """The trained network, in evaluation mode."""
        return models.load_weights(self.build(), data / "models" / self.file).eval()


NETWORKS = {
    "resnet20": Network("ResNet-20", models.resnet20, "resnet20-cifar10.safetensors"),
    "alexnet": Network("AlexNet", models.alexnet_cifar, "alexnet-cifar10.safetensors"),
    "resnet32": Network("ResNet-32", models.resnet32, "resnet32-cifar10.safetensors"),
    "resnet50": Network("ResNet-50", models.resnet50_cifar, "resnet50-cifar10.safetensors"),
    "vgg16": Network("VGG16", models.vgg16_cifar, "vgg16-cifar10.safetensors"),
}
