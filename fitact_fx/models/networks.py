"""The CIFAR-10 networks of the experiments: (N, 3, 32, 32) float32 in, logits (N, 10) out.

They are built with random weights and in evaluation mode; `load_weights` fills them from a file.
"""

from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from fitact_fx.errors import FitactError


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // channels_in
        self.added = channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Every second row and column, the new channels zero: half of them before, half behind."""
        if not self.added:
            return x
        half = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))


class CifarResNet(nn.Module):
    """ResNet for (N, 3, 32, 32), three stages of `blocks` blocks; every ReLU is a functional call."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    first = _BasicBlock(channels_in, channels)
    return nn.Sequential(first, *(_BasicBlock(channels, channels) for _ in range(blocks - 1)))


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10, 0.27 M weights."""
    return CifarResNet(3).eval()


def resnet32() -> nn.Module:
    """ResNet-32 for CIFAR-10, 0.46 M weights."""
    return CifarResNet(5).eval()


def alexnet_cifar() -> nn.Module:
    """AlexNet for (N, 3, 32, 32): one Sequential, every ReLU in place."""
    layers = [
        *_conv_relu(3, 64, stride=2),
        nn.MaxPool2d(2),
        *_conv_relu(64, 192),
        nn.MaxPool2d(2),
        *_conv_relu(192, 384),
        *_conv_relu(384, 256),
        *_conv_relu(256, 256),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(1024, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, 10),
    ]
    return nn.Sequential(*layers).eval()


def _conv_relu(channels_in: int, channels: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1), nn.ReLU(inplace=True)


def vgg16_cifar() -> nn.Module:
    """torchvision's VGG16 with BatchNorm for (N, 3, 32, 32): no average pool, one linear layer."""
    model: nn.Module = _torchvision().models.vgg16_bn(num_classes=10)
    model.avgpool = nn.Identity()
    model.classifier = nn.Linear(512, 10)
    return model.eval()


def resnet50_cifar() -> nn.Module:
    """torchvision's ResNet-50 for (N, 3, 32, 32): a 3x3 first convolution of stride 2."""
    model: nn.Module = _torchvision().models.resnet50(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    return model.eval()


def _torchvision() -> ModuleType:
    try:
        import torchvision
    except ImportError as error:
        raise FitactError("this network is torchvision's; install it with: pip install torchvision") from error
    module: ModuleType = torchvision
    return module
