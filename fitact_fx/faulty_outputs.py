"""What faults made of a model's outputs: how far they moved, which answers are wrong, what was noticed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fitact_fx.answers import scores_in
from fitact_fx.errors import FitactError
from fitact_fx.hit_words import digest, raw


@dataclass(frozen=True)
class Outputs:
    """What became of the outputs, sample by sample; `samples` is 1 where they cannot be told apart.

    `changed`: samples with any other number in their outputs; `another_argmax`: with another class of greatest score
    (NaN is the greatest), None if there are no scores. `due`: samples with a NaN or Inf that the clean outputs have
    not, or all if the run `failed`. `sdc`: samples without one that are wrong, which means another argmax, or any
    change where there are no scores. `largest_difference`: over the numbers that are finite in both; None if there are
    none.
    """

    samples: int
    changed: int
    another_argmax: int | None
    sdc: int
    due: int
    largest_difference: float | None
    failed: str | None
    clean_hash: str
    faulty_hash: str | None


def compared(clean: Any, run: Callable[[], Any], batch: int) -> Outputs:
    """What `run` returns, beside the `clean` outputs for a batch of that many samples. FitactError without tensors."""
    before = _tensors(clean)
    if not before:
        problem = f"the model returns a {type(clean).__name__}, in which no tensor is found"
        raise FitactError(
            f"{problem};\n  wrap it in a module that returns tensors, in tuples, lists or dicts if need be"
        )
    try:
        faulty = run()
    except Exception as error:  # noqa: BLE001  a faulty value may make a model fail in any way: that is noticed
        failed = f"{type(error).__name__}: {first_line(error)}"
        return Outputs(1, 1, None, 0, 1, None, failed, _hash(before), None)
    after = _tensors(faulty)
    hashes = _hash(before), _hash(after)
    if [each.shape for each in before] != [each.shape for each in after]:
        noticed = any(not bool(each.isfinite().all()) for each in after)
        return Outputs(1, 1, None, int(not noticed), int(noticed), None, None, *hashes)
    samples = batch if all(each.ndim and len(each) == batch for each in before) else 1
    pairs = [(old.reshape(samples, -1), new.reshape(samples, -1)) for old, new in zip(before, after, strict=True)]
    changed = _any(samples, [((old != new) & ~(old.isnan() & new.isnan())) for old, new in pairs])
    due = _any(samples, [old.isfinite() & ~new.isfinite() for old, new in pairs])
    another = _another_argmax(clean, faulty, samples)
    wrong = (changed if another is None else another) & ~due
    count = None if another is None else int(another.sum())
    return Outputs(samples, int(changed.sum()), count, int(wrong.sum()), int(due.sum()), _largest(pairs), None, *hashes)


def first_line(error: Exception) -> str:
    """The first line of its message, or its name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _any(samples: int, marks: list[Tensor]) -> Tensor:
    """For each sample, whether any of its numbers is marked."""
    return torch.stack([torch.zeros(samples, dtype=torch.bool), *(mark.any(1) for mark in marks)]).any(0)


def _largest(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    # Two finite numbers may be infinitely far apart, by float64's measure: that is its greatest number here.
    apart = [(old.double() - new.double())[old.isfinite() & new.isfinite()].abs().nan_to_num() for old, new in pairs]
    return max((float(each.max()) for each in apart if each.numel()), default=None)


def _another_argmax(clean: Any, faulty: Any, samples: int) -> Tensor | None:
    before, after = scores_in(clean), scores_in(faulty)
    if before is None or after is None or not before.is_floating_point():
        return None
    return (before.argmax(1) != after.argmax(1)).cpu().reshape(samples, -1).any(1)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in what a model returned, complex numbers as pairs."""
    leaves = [leaf.detach().cpu() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in leaves]


def _hash(tensors: list[Tensor]) -> str:
    return digest(part for each in tensors for part in (f"{each.dtype} {tuple(each.shape)}", raw(each)))
