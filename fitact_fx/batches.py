"""What a batch may look like, and how a model is called with it.

A batch is a tensor, `(inputs, targets)` with `inputs` a tensor, a tuple of positional or a dict of
keyword arguments, or a dict of keyword arguments with `labels` among them.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fitact_fx.answers import IGNORED
from fitact_fx.errors import CalibrationError


class Batch(NamedTuple):
    """One batch: how to call the model, the labels if there are any, and which batch of the data it is (from)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Tensor | None
    number: int | None = None

    def run(self, model: Callable[..., Any]) -> Any:
        """The model's output for this batch; a model that overwrites its inputs overwrites copies."""
        args, kwargs = pytree.tree_map(_copied, (self.args, self.kwargs))
        return model(*args, **kwargs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every input tensor, batch first."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return tuple(value for value in leaves if isinstance(value, Tensor))

    @property
    def size(self) -> int:
        """How many samples it holds."""
        return next((len(tensor) for tensor in self.tensors if tensor.ndim), 0)

    def samples(self, kept: Tensor) -> "Batch":
        """The samples whose place is in `kept`, an index tensor."""

        def pick(value: Any) -> Any:
            return value[kept] if isinstance(value, Tensor) and value.ndim and len(value) == self.size else value

        targets = None if self.targets is None else pick(self.targets)
        args, kwargs = pytree.tree_map(pick, (self.args, self.kwargs))
        return Batch(args, kwargs, targets, self.number)

    def fingerprints(self) -> list[bytes]:
        """One digest per sample, of its input values alone: the same sample has it in any order or batch."""
        digests = [hashlib.blake2b(digest_size=8) for _ in range(self.size)]
        for tensor in self.tensors:
            if tensor.ndim and len(tensor) == self.size:
                rows = (
                    tensor.detach().cpu().contiguous().flatten(1) if tensor.ndim > 1 else tensor.detach().cpu()[:, None]
                )
                for digest, row in zip(digests, rows.contiguous().view(torch.uint8).numpy(), strict=True):
                    digest.update(row.tobytes())
        return [digest.digest() for digest in digests]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def as_batches(data: object, use: str = "learn bounds from") -> Iterator[Batch]:
    """The batches of `data`; CalibrationError for what is not a batch, holds NaN, or for no batch at all.

    `use` is what the data is for, as a verb, for the error.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"data must be a re-iterable of batches, such as a DataLoader, and is a {type(data).__name__};\n"
            "  for a single batch, pass a list with that batch in it"
        )
    _refuse_bare_pair(data)
    empty = True
    for number, item in enumerate(data):
        batch = _as_batch(item)._replace(number=number)
        if batch.size == 0:
            raise CalibrationError(f"batch {number} holds no samples;\n  drop empty batches from the data")
        # Infinity may be meant, as in an attention mask; a site that it reaches is refused where it shows.
        if any(tensor.isnan().any() for tensor in batch.tensors):
            raise CalibrationError(f"batch {number} holds NaN, which is nothing to {use};\n  clean the data")
        empty = False
        yield batch
    if empty:
        raise CalibrationError(
            f"the data is empty, so there is nothing to {use};\n  pass a re-iterable, not a used-up iterator"
        )


def labelled_alike(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; CalibrationError where some have labels and others none, or labels look like inputs."""
    first: bool | None = None
    for batch in batches:
        labelled = batch.targets is not None
        first = labelled if first is None else first
        if labelled != first:
            has, others = ("labels", "have none") if labelled else ("no labels", "have some")
            raise CalibrationError(
                f"batch {batch.number} has {has}, and those before it {others};\n"
                "  give labels with every batch or with none; where single samples have none, label them "
                f"{IGNORED}"
            )
        _require_tensor(batch)
        refuse_inputs_as_labels(batch)
        yield batch


def _require_tensor(batch: Batch) -> None:
    labels: object = batch.targets
    if labels is not None and not isinstance(labels, Tensor):
        raise CalibrationError(
            f"the labels of batch {batch.number} are a {type(labels).__name__};\n"
            "  give them as a tensor, such as torch.tensor(labels), or give none"
        )


def refuse_inputs_as_labels(batch: Batch) -> None:
    """CalibrationError where the labels look like a second input: numbers with a point, in the shape of the first."""
    targets = batch.targets
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        return
    if any(tensor.shape == targets.shape for tensor in batch.tensors):
        raise CalibrationError(
            f"batch {batch.number} is (inputs, labels), and its labels are {targets.dtype} in the shape of the inputs, "
            f"{tuple(targets.shape)};\n"
            "  give two inputs as ((first, second), None), or with labels as ((first, second), labels); "
            "leave out targets that are no classes"
        )


def _refuse_bare_pair(data: object) -> None:
    """Two batches of one model are alike but for their sizes; inputs and their labels are not."""
    if not isinstance(data, Sequence) or len(data) != 2 or not all(isinstance(each, Tensor) for each in data):
        return
    first, second = data
    if first.shape[:1] == second.shape[:1] and (first.ndim != second.ndim or first.dtype != second.dtype):
        raise CalibrationError(
            f"data is two tensors, {first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}, which "
            "are hardly two batches of one model;\n"
            "  if they are inputs and their labels, put them in one batch: data=[(inputs, labels)]"
        )


def _as_batch(item: object) -> Batch:
    if isinstance(item, Batch):
        return item
    if isinstance(item, Tensor):
        return Batch((item,), {}, None)
    if isinstance(item, Mapping):
        named = dict(item)
        return Batch((), named, named.pop("labels", None))
    if isinstance(item, Sequence) and len(item) == 1:
        return _with_inputs(item[0], None)
    if isinstance(item, Sequence) and len(item) == 2 and (item[1] is None or isinstance(item[1], Tensor)):
        return _with_inputs(item[0], item[1])
    raise _unreadable(item)


def _unreadable(item: object) -> CalibrationError:
    return CalibrationError(
        f"cannot read a batch of type {type(item).__name__};\n"
        "  give a tensor, (inputs, targets) with inputs a tensor, tuple or dict, or a dict of keyword arguments"
    )


def _with_inputs(inputs: object, targets: Tensor | None) -> Batch:
    if isinstance(inputs, Mapping):
        return Batch((), dict(inputs), targets)
    if isinstance(inputs, tuple | list):
        return Batch(tuple(inputs), {}, targets)
    if isinstance(inputs, Tensor):
        return Batch((inputs,), {}, targets)
    raise _unreadable(inputs)
