"""What a batch may look like, and how a model is called with it."""

import hashlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fitact_fx.batches import Batch, as_batches, labelled_alike
from fitact_fx.errors import CalibrationError

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 0])
MASK = torch.ones(4, dtype=torch.bool)


class Recorder(nn.Module):
    """Gives back how it was called."""

    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("item", "args", "kwargs", "targets"),
    [
        (X, (X,), {}, None),
        ((X,), (X,), {}, None),
        ([X], (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X, None), (X,), {}, None),
        (((X, MASK), Y), (X, MASK), {}, Y),
        (([X, MASK], None), (X, MASK), {}, None),
        (({"x": X, "mask": MASK}, Y), (), {"x": X, "mask": MASK}, Y),
        ({"x": X, "labels": Y}, (), {"x": X}, Y),
        (OrderedDict(x=X, mask=MASK), (), {"x": X, "mask": MASK}, None),
        (((X, 3, "fast"), Y), (X, 3, "fast"), {}, Y),
    ],
)
def test_every_documented_form_of_a_batch_calls_the_model_as_it_says(item, args, kwargs, targets):
    (batch,) = as_batches([item])
    got_args, got_kwargs = batch.run(Recorder())
    assert len(got_args) == len(args)
    assert all(same(got, wanted) for got, wanted in zip(got_args, args, strict=True))
    assert got_kwargs.keys() == kwargs.keys()
    assert all(same(got_kwargs[name], kwargs[name]) for name in kwargs)
    assert batch.targets is targets
    assert batch.size == 4


def same(got, wanted):
    """Equal, and a tensor is a copy: the model may overwrite what it is called with."""
    if isinstance(wanted, torch.Tensor):
        return got is not wanted and torch.equal(got, wanted)
    return got == wanted


def test_a_batch_is_read_without_taking_the_labels_out_of_the_users_dict():
    item = {"x": X, "labels": Y}
    list(as_batches([item]))
    assert list(item) == ["x", "labels"]


def test_a_data_loader_with_and_without_targets_is_data():
    pairs = list(as_batches(DataLoader(TensorDataset(X, Y), batch_size=3)))
    assert [batch.size for batch in pairs] == [3, 1]
    assert torch.equal(pairs[1].targets, Y[3:])
    alone = list(as_batches(DataLoader(TensorDataset(X), batch_size=3)))
    assert [batch.targets for batch in alone] == [None, None]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            X,
            "data must be a re-iterable of batches, such as a DataLoader, and is a Tensor;\n  for a single batch, pass",
        ),
        (
            (X, Y),
            "which are hardly two batches of one model;\n  if they are inputs and their labels, put",
        ),
        ([X, Y], "data is two tensors, torch.float32 (4, 3) and torch.int64 (4,), which are hardly"),
        ((X, Y), "they are inputs and their labels, put them in one batch: data=[(inputs, labels)]"),
        ([X, Y.float()], "data is two tensors, torch.float32 (4, 3) and torch.float32 (4,), which are hardly"),
        ((X, torch.zeros(4, 3, dtype=torch.long)), "torch.float32 (4, 3) and torch.int64 (4, 3), which are hardly"),
        (3, "data must be a re-iterable of batches, such as a DataLoader, and is a int"),
        (
            [],
            "the data is empty, so there is nothing to learn bounds from;\n  pass a re-iterable, not a used-up",
        ),
        ([(X, Y, Y)], "cannot read a batch of type tuple;\n  give a tensor, (inputs, targets)"),
        ([(X, [0, 1, 2, 0])], "cannot read a batch of type tuple"),
        ([np.zeros((4, 3))], "cannot read a batch of type ndarray"),
        ([(np.zeros((4, 3)), Y)], "cannot read a batch of type ndarray"),
        (["images"], "cannot read a batch of type str"),
        ([X, X[:0]], "batch 1 holds no samples;\n  drop empty batches from the data"),
        ([{"labels": Y}], "batch 0 holds no samples"),
        ([torch.tensor(1.0)], "batch 0 holds no samples"),
        (
            [X, X * float("nan")],
            "batch 1 holds NaN, which is nothing to learn bounds from;\n  clean the data",
        ),
    ],
)
def test_what_is_no_batch_is_refused_with_a_remedy(data, text):
    with pytest.raises(CalibrationError) as raised:
        list(as_batches(data))
    assert text in str(raised.value)


@pytest.mark.parametrize("pair", [(X, X + 1), [X, X[:2]], [X, torch.ones(4, 5)], (X, torch.ones(3))])
def test_two_tensors_that_may_be_two_batches_are_two_batches(pair):
    assert [batch.args[0] is given for batch, given in zip(as_batches(pair), pair, strict=True)] == [True, True]


def test_labels_in_a_list_are_refused_with_their_batch():
    with pytest.raises(CalibrationError, match=r"^the labels of batch 1 are a list;\n  give them as a tensor, such as"):
        list(labelled_alike(as_batches([{"x": X, "labels": Y}, {"x": X, "labels": Y.tolist()}])))


def test_a_used_up_iterator_is_called_empty():
    data = iter([X, X])
    assert len(list(as_batches(data))) == 2
    with pytest.raises(CalibrationError, match="not a used-up iterator"):
        list(as_batches(data))


def test_samples_are_picked_from_every_tensor_that_holds_one_per_sample():
    batch = Batch((X, 3, torch.tensor(0.5)), {"mask": MASK, "table": torch.ones(7)}, Y)
    picked = batch.samples(torch.tensor([2, 0]))
    assert picked.args[0].tolist() == X[[2, 0]].tolist()
    assert picked.args[1:] == (3, torch.tensor(0.5))
    assert picked.kwargs["mask"].shape == (2,)
    assert picked.kwargs["table"].shape == (7,)
    assert picked.targets.tolist() == [2, 0]


def test_a_sample_has_the_same_fingerprint_in_any_batch_and_any_order():
    whole = Batch((X,), {"mask": MASK}, Y).fingerprints()
    shuffled = Batch((X,), {"mask": MASK}, None).samples(torch.tensor([3, 1, 0, 2])).fingerprints()
    assert shuffled == [whole[place] for place in (3, 1, 0, 2)]
    assert len(set(whole)) == 4
    assert whole[1] == hashlib.blake2b(X[1].numpy().tobytes() + b"\x01", digest_size=8).digest()
    assert Batch((X,), {"mask": ~MASK}, None).fingerprints()[0] != whole[0]


@pytest.mark.parametrize("tensor", [torch.arange(4), X.bfloat16(), X.t().contiguous().t(), X.double()])
def test_fingerprints_read_any_type_and_layout(tensor):
    assert Batch((tensor,), {}, None).fingerprints() == Batch((tensor.contiguous(),), {}, None).fingerprints()
    assert len(set(Batch((tensor,), {}, None).fingerprints())) == 4
