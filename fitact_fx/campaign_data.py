"""The data that a campaign's words stand for, read once: a pair (inputs, labels), or a list of batches."""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitact_fx.batches import as_batches
from fitact_fx.campaign_file import ARRAYS, CIFAR10
from fitact_fx.errors import CalibrationError, CampaignError, close_to
from fitact_fx.model_spec import made_by
from fitact_fx.models import load_cifar10, load_digits_data

_AT_ONCE = 256  # samples per batch, as in a campaign made from Python
_INPUTS, _LABELS = ("x", "images", "inputs"), ("y", "labels")
_FORMS = "digits, cifar10:FILE.npz, FILE.npz, or package.module:factory"


def load_data(words: Mapping[str, Any]) -> object:
    """What `data`, `inputs`, `labels`, `samples` and `batch` say. CampaignError for what cannot be found or read."""
    spec, samples, batch = words.get("data"), words.get("samples"), words.get("batch")
    if spec is None:
        raise CampaignError(f"nothing says what to measure on;\n  add --data: {_FORMS}")
    for name, value in (("samples", samples), ("batch", batch)):
        if value is not None and value < 1:
            raise CampaignError(f"{name} is {value};\n  give a whole number from 1 up")
    if not spec.endswith(ARRAYS) and ("inputs" in words or "labels" in words):
        raise CampaignError("inputs and labels name the arrays of a FILE.npz;\n  leave them out for other data")
    found = _read(spec, words)
    match found:
        case (Tensor() as inputs, Tensor() as labels):
            return _cut(inputs[:samples], labels[:samples], batch)
        case Tensor() as inputs:
            return list(inputs[:samples].split(batch or _AT_ONCE))
    return _first(_batches(found, spec, batch), samples)


def _read(spec: str, words: Mapping[str, Any]) -> object:
    if spec == "digits":
        return load_digits_data().test
    if spec.startswith(CIFAR10):
        return load_cifar10(spec.removeprefix(CIFAR10)).test(words.get("samples"))
    if spec.endswith(ARRAYS):
        return _arrays(Path(spec), words.get("inputs"), words.get("labels"))
    module, _, name = spec.partition(":")
    if not module or not name:
        raise CampaignError(f"data {spec!r} names none;\n  give {_FORMS}")
    return made_by(spec, module, name)


def _cut(inputs: Tensor, labels: Tensor, batch: int | None) -> object:
    if batch is None or len(inputs) != len(labels):  # the campaign says what is wrong with the latter
        return inputs, labels
    return list(zip(inputs.split(batch), labels.split(batch), strict=True))


def _batches(found: object, spec: str, batch: int | None) -> list[Any]:
    if not isinstance(found, Iterable) or isinstance(found, str | Mapping):
        raise CampaignError(
            f"{spec} gives a {type(found).__name__};\n  let it give (inputs, labels), two tensors, or a list of batches"
        )
    if batch is not None:
        raise CampaignError(f"{spec} gives batches of its own;\n  leave out --batch, or let it give (inputs, labels)")
    return list(found)


def _first(batches: Sequence[Any], samples: int | None) -> list[Any]:
    """As many batches as hold so many samples, the last one cut where need be."""
    chosen: list[Any] = []
    left = samples
    for item in batches:
        if left == 0:
            break
        if left is not None:
            item, left = _at_most(item, left)
        chosen.append(item)
    return chosen


def _at_most(item: Any, count: int) -> tuple[Any, int]:
    """The batch, or its first `count` samples, and how many are still wanted after it."""
    try:
        (batch,) = as_batches([item], "measure on")
    except CalibrationError as error:
        reason = str(error).splitlines()[0].rstrip(";")
        raise CampaignError(f"samples cannot be counted off: {reason};\n  leave out --samples") from error
    if batch.size <= count:
        return item, count - batch.size
    part = batch.samples(torch.arange(count))
    return (part.kwargs or part.args, part.targets), 0


def _arrays(path: Path, inputs: str | None, labels: str | None) -> object:
    """The arrays as they are: numbers with a point as float32, whole ones, which are indices, as int64."""
    if not path.is_file():
        raise CampaignError(f"there is no file {path};\n  give the path of an npz file")
    if not zipfile.is_zipfile(path):
        raise CampaignError(f"{path} is not an npz file;\n  write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = _array(arrays, inputs, _INPUTS, "inputs", path)
            y = _array(arrays, labels, _LABELS, "labels", path)
    except ValueError as error:
        raise CampaignError(f"{path} holds something else than plain arrays;\n  save numbers only") from error
    if x is None:
        names = ", ".join(arrays.files) or "none"
        raise CampaignError(f"{path} has no array x, images or inputs, but {names};\n  say which with --inputs KEY")
    if y is not None and y.is_floating_point():
        raise CampaignError(f"the labels in {path} are no classes: {y.dtype};\n  say which array with --labels KEY")
    return x if y is None else (x, y)


def _array(arrays: Mapping[str, Any], wanted: str | None, usual: Sequence[str], flag: str, path: Path) -> Tensor | None:
    if wanted is not None and wanted not in arrays:
        raise CampaignError(f"{path} has no array {wanted!r}{close_to(wanted, arrays)};\n  name another with --{flag}")
    name = wanted or next((each for each in usual if each in arrays), None)
    return None if name is None else _tensor(np.asarray(arrays[name]), name, flag, path)


def _tensor(array: Any, name: str, flag: str, path: Path) -> Tensor:
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind in "iu" and (flag == "labels" or array.dtype.itemsize > 1):
        return torch.from_numpy(array.astype(np.int64))
    remedy = "save them as the model takes them, in float32, or give a factory that does that"
    raise CampaignError(f"{name} in {path} is {array.dtype}, as images are before they are scaled;\n  {remedy}")
