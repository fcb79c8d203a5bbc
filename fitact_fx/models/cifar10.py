"""CIFAR-10 (Krizhevsky, 2009) from one npz file of uint8 images, normalised as the networks expect."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitact_fx.errors import FitactError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IMAGE = (32, 32, 3)


@dataclass(frozen=True, eq=False)
class Cifar10:
    """Images as stored, (N, 32, 32, 3) uint8, and their classes, (N,) int64.

    Only the images asked for are normalised: the whole set in float32 takes four times the memory.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def train(self, n: int | None = None, start: int = 0) -> tuple[Tensor, Tensor]:
        """At most `n` training images from `start` on (None: all): (n, 3, 32, 32) float32, (n,) int64."""
        return _part(self.x_train, self.y_train, n, start)

    def test(self, n: int | None = None, start: int = 0) -> tuple[Tensor, Tensor]:
        """At most `n` test images from `start` on (None: all): (n, 3, 32, 32) float32, (n,) int64."""
        return _part(self.x_test, self.y_test, n, start)


def load_cifar10(path: str | Path) -> Cifar10:
    """Read an npz file with the arrays x_train, y_train, x_test and y_test.

    Raises:
        FitactError: no such file, not an npz file, or arrays that are missing or not CIFAR-10's.
    """
    path = Path(path)
    if not path.is_file():
        raise FitactError(f"no CIFAR-10 at {path}: give the path of an npz file")
    if not zipfile.is_zipfile(path):
        raise FitactError(f"{path} is not an npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Cifar10(*_labelled(arrays, "train"), *_labelled(arrays, "test"))
    except FitactError as error:
        raise FitactError(f"{path} is not CIFAR-10: {error}") from error
    except ValueError as error:
        raise FitactError(f"{path} holds something else than plain arrays") from error


def _labelled(arrays: Mapping[str, Any], part: str) -> tuple[Tensor, Tensor]:
    for name in (f"x_{part}", f"y_{part}"):
        if name not in arrays:
            raise FitactError(f"it has no array {name}")
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype != np.uint8 or x.shape[1:] != IMAGE or y.shape != x.shape[:1]:
        raise FitactError(f"x_{part} is {x.dtype} {x.shape} with {y.shape} labels, not uint8 (N, 32, 32, 3) with (N,)")
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _part(x: Tensor, y: Tensor, n: int | None, start: int) -> tuple[Tensor, Tensor]:
    chosen = slice(start, None if n is None else start + n)
    images = x[chosen].permute(0, 3, 1, 2).to(torch.float32).contiguous()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return images.div_(255).sub_(mean).div_(std), y[chosen]
