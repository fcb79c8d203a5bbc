"""The networks fit their trained weights, the data is what it says, and digits are learned."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fitact_fx import models
from fitact_fx.errors import FitactError

# network, what its file is called, least accuracy on the first 1,000 test images
TRAINED = [
    (models.resnet20, "resnet20", 0.91),
    (models.resnet32, "resnet32", 0.91),
    (models.alexnet_cifar, "alexnet", 0.77),
    pytest.param(models.vgg16_cifar, "vgg16", 0.86, marks=needs_torchvision),
    pytest.param(models.resnet50_cifar, "resnet50", 0.72, marks=needs_torchvision),
]


def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    with torch.inference_mode():
        hits = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), classes.split(250), strict=True)
        )
    return hits / len(classes)


@pytest.fixture(scope="module")
def cifar10(shared_data: Path) -> models.Cifar10:
    return models.load_cifar10(shared_data / "data/cifar10.npz")


@pytest.mark.parametrize(("build", "name", "least"), TRAINED)
def test_a_network_maps_images_to_ten_logits_in_evaluation_mode(
    build: Callable[[], nn.Module], name: str, least: float
) -> None:
    model = build()
    assert not model.training
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("build", "name", "least"), TRAINED)
def test_a_trained_network_is_as_accurate_as_its_file_promises(
    build: Callable[[], nn.Module], name: str, least: float, shared_data: Path, cifar10: models.Cifar10
) -> None:
    model = models.load_weights(build(), shared_data / f"models/{name}-cifar10.safetensors")
    assert accuracy(model, *cifar10.test(1000)) >= least


@pytest.mark.parametrize(("build", "name", "least"), TRAINED)
def test_a_network_has_the_names_and_shapes_of_its_file(
    build: Callable[[], nn.Module], name: str, least: float, shared_data: Path
) -> None:
    with safe_open(shared_data / f"models/{name}-cifar10.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    own = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    untracked = {name for name in own if name.endswith("num_batches_tracked")} - stored.keys()
    assert {name: shape for name, shape in own.items() if name not in untracked} == stored


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = models.resnet20().layer2[0]  # 16 channels to 32
    x = torch.randn(1, 16, 6, 6)
    padded = block.shortcut(x)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert padded[:, :8].count_nonzero() == padded[:, 24:].count_nonzero() == 0


def test_float16_weights_are_widened(tmp_path: Path) -> None:
    weights = {"weight": torch.full((2, 3), 0.1, dtype=torch.float16), "bias": torch.zeros(2)}
    save_file(weights, tmp_path / "w.safetensors")
    model = models.load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight.detach(), weights["weight"].float())


def test_a_file_without_batch_counts_loads(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    save_file({f"0.{name}": value for name, value in state.items()}, tmp_path / "w.safetensors")
    models.load_weights(nn.Sequential(nn.BatchNorm1d(3)), tmp_path / "w.safetensors")


def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.ones(2, 4), "scale": torch.ones(2)}, path)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(FitactError) as refused:
        models.load_weights(model, path)
    assert str(refused.value) == (
        f"{path} does not fit this Linear:\n  not in the file: bias;\n  not in the model: scale;\n"
        "  of another shape: weight"
    )
    assert torch.equal(model.weight.detach(), before)


def test_a_missing_or_foreign_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FitactError, match=r"no weights at .*gone\.safetensors: give the path"):
        models.load_weights(nn.Linear(1, 1), tmp_path / "gone.safetensors")
    (tmp_path / "text").write_text("not weights at all")
    with pytest.raises(FitactError, match="text is not a safetensors file"):
        models.load_weights(nn.Linear(1, 1), tmp_path / "text")


def write_cifar10(path: Path, **replaced: np.ndarray) -> np.ndarray:
    x = np.random.Generator(np.random.Philox(0)).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    y = np.arange(6, dtype=np.uint8)
    np.savez(path, **({"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]} | replaced))
    return x


def test_images_are_normalised_as_the_networks_expect(tmp_path: Path) -> None:
    raw = write_cifar10(tmp_path / "c.npz")
    images, classes = models.load_cifar10(tmp_path / "c.npz").train(2, start=3)
    expected = (raw[3:5] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert images.dtype == torch.float32
    assert classes.tolist() == [3, 4]


def test_asking_for_images_leaves_the_stored_ones_alone(tmp_path: Path) -> None:
    raw = write_cifar10(tmp_path / "c.npz")
    data = models.load_cifar10(tmp_path / "c.npz")
    data.train()[0].zero_()
    assert len(data.test()[0]) == 4
    assert np.array_equal(data.x_train.numpy(), raw)


def test_what_is_not_cifar10_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with pytest.raises(FitactError, match=r"no CIFAR-10 at .*c\.npz: give the path of an npz file"):
        models.load_cifar10(path)
    for junk in (b"", b"junk", b"PK\x03\x04junk"):
        path.write_bytes(junk)
        with pytest.raises(FitactError, match=r"c\.npz is not an npz file"):
            models.load_cifar10(path)
    np.savez(path, x_train=np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(FitactError, match=r"c\.npz is not CIFAR-10: it has no array y_train"):
        models.load_cifar10(path)
    write_cifar10(path, x_test=np.zeros((4, 28, 28), np.float32))
    with pytest.raises(FitactError, match=r"x_test is float32 \(4, 28, 28\) with \(4,\) labels, not uint8"):
        models.load_cifar10(path)
    write_cifar10(path, y_train=np.array([{}] * 6, dtype=object))
    with pytest.raises(FitactError, match=r"c\.npz holds something else than plain arrays"):
        models.load_cifar10(path)


def test_digits_parts_cover_the_data_without_overlap() -> None:
    data = models.load_digits_data()
    parts = (data.train, data.calibration, data.test)
    assert [tuple(x.shape) for x, _ in parts] == [(n, 1, 8, 8) for n in (1028, 257, 512)]
    assert all(float(x.min()) == 0 and float(x.max()) == 1 and len(y.unique()) == 10 for x, y in parts)


def test_digits_are_learned_and_a_seed_gives_one_network() -> None:
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again = models.train_digits(3), models.train_digits(3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert accuracy(first, *models.load_digits_data().test) > 0.97
    assert not first.training
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(FitactError, match=r"pip install 'fitact-fx\[demo\]'"):
        models.load_digits_data()


def test_torchvision_networks_without_torchvision_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FitactError, match="pip install torchvision"):
        models.vgg16_cifar()
