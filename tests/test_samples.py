"""The data of a campaign: every form of it, and a fingerprint that tells any two apart."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fitact_fx.campaigns.fingerprints import parts, tensor_bytes
from fitact_fx.campaigns.samples import Samples
from fitact_fx.errors import CampaignError

X = torch.arange(24.0).reshape(6, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def same(given: Any, wanted: Any) -> bool:
    return given is wanted or (isinstance(given, Tensor) and isinstance(wanted, Tensor) and torch.equal(given, wanted))


BOXES = [{"boxes": torch.ones(2, 4)}, {"boxes": torch.zeros(0, 4)}]
FORMS: dict[str, tuple[Any, list[tuple[tuple[Any, ...], dict[str, Any], Any]]]] = {
    "two tensors": ((X, Y), [((X,), {}, Y)]),
    "labelled batches": ([(X[:4], Y[:4]), (X[4:], Y[4:])], [((X[:4],), {}, Y[:4]), ((X[4:],), {}, Y[4:])]),
    "batches in a tuple": (((X[:4], Y[:4]), (X[4:], Y[4:])), [((X[:4],), {}, Y[:4]), ((X[4:],), {}, Y[4:])]),
    "batches without labels": ([X[:4], X[4:]], [((X[:4],), {}, None), ((X[4:],), {}, None)]),
    "one batch without labels": ([X], [((X,), {}, None)]),
    "targets that are None": ([(X, None)], [((X,), {}, None)]),
    "several inputs": ([((X, 2 * X), Y)], [((X, 2 * X), {}, Y)]),
    "named inputs": ([{"x": X, "labels": Y}], [((), {"x": X}, Y)]),
    "named inputs and targets": ([({"x": X}, Y)], [((), {"x": X}, Y)]),
    "a loader": (DataLoader(TensorDataset(X, Y), batch_size=4), [((X[:4],), {}, Y[:4]), ((X[4:],), {}, Y[4:])]),
    "a generator": (((X[i : i + 3], Y[i : i + 3]) for i in (0, 3)), [((X[:3],), {}, Y[:3]), ((X[3:],), {}, Y[3:])]),
    "boxes": ([(X[:2], BOXES)], [((X[:2],), {}, BOXES)]),
    "texts": ([(X[:2], ("a", "b"))], [((X[:2],), {}, ("a", "b"))]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_read(form: str) -> None:
    data, wanted = FORMS[form]
    samples = Samples.read(data)
    assert len(samples.batches) == len(samples.targets) == len(wanted)
    for batch, targets, (args, kwargs, theirs) in zip(samples.batches, samples.targets, wanted, strict=True):
        assert len(batch.args) == len(args)
        assert all(map(same, batch.args, args))
        assert batch.kwargs.keys() == kwargs.keys()
        assert all(same(batch.kwargs[name], kwargs[name]) for name in kwargs)
        assert same(targets, theirs)
    assert samples.sizes == tuple(len((*args, *kwargs.values())[0]) for args, kwargs, _ in wanted)


def test_two_tensors_are_cut_into_batches_of_256() -> None:
    samples = Samples.read((torch.zeros(600, 1), torch.arange(600)))
    assert samples.sizes == (256, 256, 88)
    assert torch.equal(torch.cat(samples.targets), torch.arange(600))


def test_a_list_of_two_tensors_is_two_batches_and_no_labels() -> None:
    samples = Samples.read([X[:3], X[3:]])
    assert samples.sizes == (3, 3)
    assert samples.targets == (None, None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data is empty, so there is nothing to measure on"),
        ((torch.empty(0, 4), torch.empty(0)), "batch 0 holds no samples"),
        ([(X, Y), (X[:0], Y[:0])], "batch 1 holds no samples"),
        ((X, Y[:4]), "there are 6 samples and 4 targets for them"),
        ((X, torch.tensor(3)), "there are 6 samples and no targets for them"),
        ([(X / 0 * 0, Y)], "batch 0 holds NaN, which is nothing to measure on"),
        (X, "data must be a re-iterable of batches, such as a DataLoader, and is a Tensor"),
        (7, "data must be a re-iterable of batches, such as a DataLoader, and is a int"),
        ([7], "cannot read a batch of type int"),
        ([("x", "y")], "cannot read a batch of type str"),
        ([(X, Y, Y)], "cannot read a batch of type tuple"),
    ],
)
def test_what_is_no_data_is_refused(data: object, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        Samples.read(data)


def changed(place: int, value: float) -> Tensor:
    other = X.clone()
    other.view(-1)[place] = value
    return other


@dataclass
class Truth:
    boxes: Tensor
    names: Any


LONG = np.arange(5000)
LONG_BUT_ONE = np.where(LONG == 2500, -1, LONG)
DIFFERENT: dict[str, Callable[[], Any]] = {
    "the data": lambda: [(X, Y)],
    "another value": lambda: [(changed(23, 23.0001), Y)],
    "a zero with a sign": lambda: [(changed(0, -0.0), Y)],
    "an infinity": lambda: [(changed(0, torch.inf), Y)],
    "another type": lambda: [(X.double(), Y)],
    "another type of labels": lambda: [(X, Y.int())],
    "another shape": lambda: [(X.reshape(6, 2, 2), Y)],
    "another order": lambda: [(X.flip(0), Y)],
    "another cut": lambda: [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "another cut yet": lambda: [(X[:2], Y[:2]), (X[2:], Y[2:])],
    "another order of batches": lambda: [(X[3:], Y[3:]), (X[:3], Y[:3])],
    "another label": lambda: [(X, torch.tensor([0, 1, 2, 0, 1, 1]))],
    "no labels": lambda: [X],
    "a name": lambda: [({"x": X}, Y)],
    "another name": lambda: [({"z": X}, Y)],
    "two inputs": lambda: [((X, X), Y)],
    "odd targets": lambda: [(X, [1, 23])],
    "odd targets, written alike": lambda: [(X, [12, 3])],
    "odd targets, nested": lambda: [(X, [[1], [23]])],
    "odd targets of another type": lambda: [(X, [1.0, 23.0])],
    "odd targets in a tuple": lambda: [(X, (1, 23))],
    "boxes": lambda: [(X, [{"boxes": X}])],
    "other boxes": lambda: [(X, [{"boxes": changed(9, 0)}])],
    "more boxes": lambda: [(X, [{"boxes": X}, {"boxes": X}])],
    "an array": lambda: [(X, LONG)],
    "an array that differs where it is not printed": lambda: [(X, LONG_BUT_ONE)],
    "objects": lambda: [(X, [Truth(X, LONG)])],
    "objects that differ inside": lambda: [(X, [Truth(X, LONG_BUT_ONE)])],
    "nothing in a list": lambda: [(X, [])],
    "nothing in a dict": lambda: [(X, {})],
}


def test_no_two_data_have_the_same_fingerprint() -> None:
    found = {name: Samples.read(make()).fingerprint for name, make in DIFFERENT.items()}
    assert len(set(found.values())) == len(found)
    assert found == {name: Samples.read(make()).fingerprint for name, make in DIFFERENT.items()}


def test_a_fingerprint_is_of_the_values_and_not_of_how_they_lie_in_memory() -> None:
    transposed = X.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert Samples.read([(transposed, Y)]).fingerprint == Samples.read([(X, Y)]).fingerprint
    assert Samples.read((X, Y)).fingerprint == Samples.read([(X, Y)]).fingerprint


SCRIPT = """
import torch
from fitact_fx.campaigns.samples import Samples
class Odd:
    pass
torch.manual_seed(0)
data = [({"x": torch.randn(3, 2), "mask": None}, [{"boxes": torch.randn(2, 4), "of": Odd()}, "text", 2.5])]
told = Samples.read(data).fingerprint
print(told)
"""


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    here: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, here)
    there = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout.strip()
    assert len(there) == 32
    assert here["told"] == there


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
)
def test_tensors_of_any_type_have_bytes_of_their_own(dtype: torch.dtype) -> None:
    one = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    assert tensor_bytes(one) == tensor_bytes(one.clone())
    assert tensor_bytes(one) != tensor_bytes(one.flip(0))
    assert tensor_bytes(one) != tensor_bytes(one.reshape(4))
    assert tensor_bytes(one[:0]) != tensor_bytes(one[:, :0])
    assert tensor_bytes(one.to_sparse()) != tensor_bytes(one)


def test_a_conjugate_that_is_not_computed_yet_has_the_bytes_of_its_values() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    assert tensor_bytes(numbers.conj()) == tensor_bytes(torch.tensor([1 - 2j, 3 + 1j]))


def test_parts_are_found_in_whatever_holds_them_and_once() -> None:
    class Holds:
        def __init__(self, **attributes: Any) -> None:
            vars(self).update(attributes)

    whole = Holds(a=[X, (1, None)], b=OrderedDict(c=Truth(Y, "n")))
    whole.itself = whole
    leaves = [leaf for _, leaf in parts(whole)]
    assert [leaf for leaf in leaves if not isinstance(leaf, Tensor | Holds)] == [1, None, "n"]
    assert sum(leaf is X for leaf in leaves) == sum(leaf is Y for leaf in leaves) == 1
    assert len({path for path, _ in parts(whole)}) == len(leaves)
