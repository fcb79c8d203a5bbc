"""Neuron bounds equal an independent NumPy maximum, element by element, over five calibration batches of any sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.models import load_cifar10, load_weights, resnet20

SIZES = (5, 1, 8, 3, 7)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Tanh(),
    ).eval()


def maxima(model: nn.Module, sites: dict[str, str], data: list[Tensor]) -> dict[str, np.ndarray]:
    """Site -> NumPy's maximum over all samples of what its module gave, on the untouched model."""
    found: dict[str, np.ndarray] = {}

    def take(name: str, values: np.ndarray) -> None:
        own = np.maximum(values, 0).max(axis=0) if "relu" in name else values.max(axis=0)
        found[name] = np.maximum(found[name], own) if name in found else own

    for name, path in sites.items():
        model.get_submodule(path).register_forward_hook(lambda _, __, out, name=name: take(name, out.numpy()))
    with torch.no_grad():
        for batch in data:
            model(batch.clone())
    return found


def split(samples: Tensor) -> list[Tensor]:
    return list(samples.split(SIZES))


def assert_equal(hard: nn.Module, expected: dict[str, np.ndarray]) -> None:
    bounds = fitact_fx.bounds(hard)
    assert bounds.keys() == expected.keys()
    for name, (_, upper) in bounds.items():
        assert upper is not None
        np.testing.assert_array_equal(upper.numpy()[0], expected[name], strict=True)


@pytest.mark.parametrize("scheme", ["fitact", fitact_fx.schemes.ranger.Ranger(granularity="neuron", follow=False)])
def test_neuron_bounds_are_numpys_maximum_element_by_element(scheme: object) -> None:
    data = split(torch.randn(sum(SIZES), 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    hard = fitact_fx.harden(small(), scheme=scheme)  # type: ignore[arg-type]
    fitact_fx.calibrate(hard, data)
    sites = {name: name for name in ("2", "5", "8")}
    assert_equal(hard, maxima(small(), sites, data))


def test_neuron_bounds_of_a_trained_network_are_numpys_maximum(shared_data: Path) -> None:
    model = load_weights(resnet20(), shared_data / "models" / "resnet20-cifar10.safetensors").eval()
    images, _ = load_cifar10(shared_data / "data" / "cifar10.npz").train(sum(SIZES))
    data = split(images)
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, data)
    sites = {name: _module(name) for name in fitact_fx.bounds(hard)}
    assert len(sites) == 19
    assert_equal(hard, maxima(model, sites, data))


def _module(site: str) -> str:
    """The network calls F.relu: on what bn1 gives, and on the sum whose ReLU is what the block returns."""
    block, _, call = site.rpartition(".")
    return block if call == "relu_1" else f"{block}.bn1".lstrip(".")
