"""The data of a campaign in words: what a factory gives, arrays in a file, CIFAR-10 and the digits."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fitact_fx.campaign_data import load_data
from fitact_fx.errors import FitactError

MODULE = """
import torch


def pair():
    return torch.linspace(0, 1, 60).reshape(10, 6), torch.arange(10) % 3


def batches():
    x, y = pair()
    return ((part, labels) for part, labels in zip(x.split(4), y.split(4)))


def boxes():
    return [(torch.zeros(4, 6), [{"box": 1}] * 4)]


def number():
    return 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's own module in it, importable there and nowhere after the test."""
    (tmp_path / "worded_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "worded_data", raising=False)
    return tmp_path


def pair_of(**words: Any) -> tuple[Tensor, Tensor]:
    found = load_data({"data": "worded_data:pair"} | words)
    assert isinstance(found, tuple)
    return found


def test_a_factorys_pair_is_cut_to_samples_and_into_batches() -> None:
    x, y = torch.linspace(0, 1, 60).reshape(10, 6), torch.arange(10) % 3
    assert pair_of()[0].equal(x)
    assert pair_of(samples=7)[1].equal(y[:7])
    batches: Any = load_data({"data": "worded_data:pair", "samples": 7, "batch": 3})
    assert [len(part) for part, _ in batches] == [3, 3, 1]
    assert torch.cat([part for part, _ in batches]).equal(x[:7])


def test_a_factorys_batches_are_read_once_and_the_last_one_is_cut() -> None:
    found: Any = load_data({"data": "worded_data:batches"})
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    cut: Any = load_data({"data": "worded_data:batches", "samples": 6})
    assert [len(labels) for _, labels in cut] == [4, 2]
    assert cut[1][0][0].equal(found[1][0][:2])
    whole: Any = load_data({"data": "worded_data:batches", "samples": 8})
    assert [len(labels) for _, labels in whole] == [4, 4]


def test_arrays_are_taken_as_they_are() -> None:
    x, y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 0], dtype=np.uint8)
    np.savez("d.npz", x=x, y=y, tokens=y.astype(np.int32), pixels=y)
    found: Any = load_data({"data": "d.npz"})
    assert (found[0].dtype, found[1].dtype) == (torch.float32, torch.int64)
    assert found[0].tolist() == x.tolist()
    assert found[1].tolist() == [0, 1, 2, 0]
    tokens: Any = load_data({"data": "d.npz", "inputs": "tokens", "samples": 3})
    assert (tokens[0].dtype, tokens[0].tolist()) == (torch.int64, [0, 1, 2])
    np.savez("unlabelled.npz", images=x)
    (batch,) = load_data({"data": "unlabelled.npz", "samples": 2})  # type: ignore[misc]
    assert batch.tolist() == x[:2].tolist()


def test_cifar10_is_the_test_part_normalised() -> None:
    images, labels = np.full((3, 32, 32, 3), 51, np.uint8), np.array([1, 2, 3])
    np.savez("c.npz", x_train=images, y_train=labels, x_test=images, y_test=labels[::-1])
    found: Any = load_data({"data": "cifar10:c.npz", "samples": 2})
    assert (tuple(found[0].shape), found[1].tolist()) == ((2, 3, 32, 32), [3, 2])
    assert torch.allclose(found[0][0, :, 0, 0], torch.tensor([(0.2 - 0.485) / 0.229, -0.256 / 0.224, -0.206 / 0.225]))


def test_the_digits_are_those_of_the_demo() -> None:
    pytest.importorskip("sklearn")
    found: Any = load_data({"data": "digits", "samples": 5})
    assert (tuple(found[0].shape), len(found[1])) == ((5, 1, 8, 8), 5)


REFUSED = [
    ({"data": "nothing"}, "data 'nothing' names none;\n  give digits, cifar10:FILE.npz"),
    ({"data": "no.npz"}, "there is no file no.npz;\n  give the path of an npz file"),
    ({"data": "worded_data.npz"}, "worded_data.npz is not an npz file;\n  write it with numpy.savez"),
    ({"data": "odd.npz"}, "odd.npz has no array x, images or inputs, but pictures, y;\n  say which with --inputs KEY"),
    ({"data": "odd.npz", "inputs": "picture"}, "odd.npz has no array 'picture' (close: pictures);\n  name another wit"),
    ({"data": "odd.npz", "inputs": "pictures"}, "pictures in odd.npz is uint8, as images are before they are scaled;"),
    ({"data": "odd.npz", "inputs": "y"}, "the labels in odd.npz are no classes: torch.float32;\n  say which array"),
    ({"data": "objects.npz"}, "objects.npz holds something else than plain arrays;\n  save numbers only"),
    ({"data": "worded_data:pair", "samples": 0}, "samples is 0;\n  give a whole number from 1 up"),
    ({"data": "worded_data:pair", "batch": -1}, "batch is -1;\n  give a whole number from 1 up"),
    ({"data": "worded_data:pair", "inputs": "x"}, "inputs and labels name the arrays of a FILE.npz;\n  leave them"),
    ({"data": "worded_data:number"}, "worded_data:number gives a int;\n  let it give (inputs, labels)"),
    ({"data": "worded_data:batches", "batch": 2}, "worded_data:batches gives batches of its own;\n  leave out"),
    ({"data": "worded_data:boxes", "samples": 2}, "samples cannot be counted off: cannot read a batch of type tup"),
    ({"data": "worded_data:none"}, "cannot find worded_data:none:\n  AttributeError"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_data_that_cannot_be_read_is_refused_with_the_remedy(words: dict[str, Any], message: str) -> None:
    Path("worded_data.npz").write_text("text")
    np.savez("odd.npz", pictures=np.zeros((2, 4, 4), np.uint8), y=np.zeros(2))
    np.savez("objects.npz", x=np.array([None, "x"], dtype=object))
    with pytest.raises(FitactError) as refused:
        load_data(words)
    assert str(refused.value).startswith(message)


def test_boxes_are_data_where_nothing_is_to_be_counted() -> None:
    ((inputs, boxes),) = load_data({"data": "worded_data:boxes"})  # type: ignore[misc]
    assert (tuple(inputs.shape), boxes) == ((4, 6), [{"box": 1}] * 4)
