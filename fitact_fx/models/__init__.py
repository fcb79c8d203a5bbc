"""The small networks and the data of the demo and of the experiments."""

from fitact_fx.models.cifar10 import Cifar10, load_cifar10
from fitact_fx.models.digits import Digits, digits_cnn, load_digits_data, train_digits
from fitact_fx.models.networks import alexnet_cifar, resnet20, resnet32, resnet50_cifar, vgg16_cifar
from fitact_fx.models.transformer import vit_tiny_cifar
from fitact_fx.models.weights import load_weights

__all__ = [
    "Cifar10",
    "Digits",
    "alexnet_cifar",
    "digits_cnn",
    "load_cifar10",
    "load_digits_data",
    "load_weights",
    "resnet20",
    "resnet32",
    "resnet50_cifar",
    "train_digits",
    "vgg16_cifar",
    "vit_tiny_cifar",
]
