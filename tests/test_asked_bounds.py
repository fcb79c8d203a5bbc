"""Bounds that are asked for and not learned, a percentile or a share: what they cost is measured and told."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.errors import CalibrationError, CostlyWarning, RecipeError
from fitact_fx.schemes.clip_act import ClipAct
from fitact_fx.schemes.ranger import Ranger

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


def accuracy(model: nn.Module, right: np.ndarray) -> float:
    with torch.no_grad():
        return float((model(X).numpy().argmax(1) == right).mean())


def clean_answers() -> np.ndarray:
    with torch.no_grad():
        return network()(X).numpy().argmax(1)


def labels() -> np.ndarray:
    """Right for two samples of three."""
    return (clean_answers() + (np.arange(300) % 3 == 0)) % 5


def warned(scheme: Any, data: Any, **options: Any) -> tuple[nn.Module, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hard = fitact_fx.harden(network(), scheme=scheme, data=data, **options)
    assert all(each.category is CostlyWarning and each.filename == __file__ for each in caught)
    return hard, [str(each.message) for each in caught]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("scheme", "named"),
    [(Ranger(percentile=80), "at percentile 80,"), (ClipAct(share=0.3), "at 0.3 of the maximum,")],
    ids=["percentile", "share"],
)
def test_a_clean_drop_beyond_the_limit_is_measured_and_told(scheme: Any, named: str, labelled: bool) -> None:
    right = labels() if labelled else clean_answers()
    batches = list(X.split(70))
    data = [*zip(batches, torch.from_numpy(right).split(70), strict=True)] if labelled else batches
    hard, told = warned(scheme, data)
    drop = accuracy(network(), right) - accuracy(hard, right)
    assert drop > 0.005
    assert len(told) == 1
    assert f"the bounds, {named} cost {100 * drop:.2f} points of clean accuracy on these 300 samples" in told[0]
    assert re.search(r"more than max_drop allows \(0\.50\);\n  ask for a greater percentile or share, ", told[0])
    assert warned(scheme, data, max_drop=drop)[1] == []


@pytest.mark.parametrize("scheme", [Ranger(), ClipAct(share=1.0), Ranger(percentile=99.999)], ids=str)
def test_bounds_that_cost_nothing_are_no_matter(scheme: Any) -> None:
    assert warned(scheme, [X])[1] == []


class Counting:
    """Data that knows how often it was gone through."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter([X])


@pytest.mark.parametrize(("scheme", "passes"), [(Ranger(), 1), (Ranger(percentile=99.9), 3), (ClipAct(share=0.9), 2)])
def test_the_extremes_need_no_further_pass_over_the_data(scheme: Any, passes: int) -> None:
    data = Counting()
    fitact_fx.harden(network(), scheme=scheme, data=data, max_drop=0.9)
    assert data.passes == passes


@pytest.mark.parametrize(
    "targets",
    [torch.randn(300, 5), torch.randn(300, 4), torch.zeros(300, 2, dtype=torch.long)],
    ids=["numbers", "numbers in the shape of the inputs", "two a sample"],
)
def test_where_targets_are_no_classes_the_clean_answers_are_the_right_ones(targets: Tensor) -> None:
    data = [*zip(X.split(70), targets.split(70), strict=True)]
    hard, told = warned(Ranger(percentile=80), data)
    drop = accuracy(network(), clean_answers()) - accuracy(hard, clean_answers())
    assert f"cost {100 * drop:.2f} points of clean accuracy on these 300 samples" in told[0]


@pytest.mark.parametrize(
    "head",
    [nn.Flatten(0), nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))), nn.Linear(5, 1)],
    ids=["no scores", "perhaps places before classes", "one score"],
)
@pytest.mark.parametrize("targets", [None, torch.randn(300, 5), torch.zeros(300, 1)], ids=["none", "numbers", "values"])
def test_where_outputs_are_no_class_scores_there_is_nothing_to_measure(head: nn.Module, targets: Tensor | None) -> None:
    data = [X] if targets is None else [(X, targets)]
    hard = fitact_fx.harden(nn.Sequential(network(), head), scheme=Ranger(percentile=60), data=data)
    assert fitact_fx.bounds(hard)["0.1"][1] > 0


class Named(nn.Module):
    """Takes its batches as dicts, in which labels may be anything."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


RIGHT = torch.from_numpy(labels())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            [{"x": X}, {"x": X, "labels": RIGHT}],
            r"batch 1 has labels, and those before it have none;\n  give labels with",
        ),
        ([{"x": X, "labels": RIGHT}, {"x": X}], r"batch 1 has no labels, and those before it have some"),
        ([{"x": X, "labels": RIGHT.tolist()}], r"the labels of batch 0 are a list;\n  give them as a tensor"),
        ([{"x": X, "labels": RIGHT}] * 2 + [{"x": X, "labels": RIGHT + 1}], r"batch 2: label 5 is none of 5 classes"),
        (
            [{"x": X, "labels": RIGHT}, {"x": X, "labels": RIGHT.float()}],
            r"batch 1: the labels have shape .* torch.float32",
        ),
    ],
    ids=["labels later", "labels first", "a list", "one wrong label", "numbers later"],
)
def test_labels_that_do_not_fit_are_told_and_not_passed_over(data: Any, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        fitact_fx.harden(Named(), scheme=ClipAct(share=0.5), data=data)


def test_an_iterator_that_calibration_used_up_is_told_and_not_passed_over() -> None:
    with pytest.raises(
        CalibrationError, match=r"the data is empty, so there is nothing to measure bounds on;\n  pass a"
    ):
        fitact_fx.harden(network(), scheme=ClipAct(share=0.5), data=iter([X]))


def test_measuring_leaves_modes_and_chance_as_they_were() -> None:
    model = nn.Sequential(network(), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    with pytest.warns(CostlyWarning):
        hard = fitact_fx.harden(model, scheme=ClipAct(share=0.1), data=[X])
    assert hard.training
    assert torch.equal(torch.get_rng_state(), state)


def sparse(percent: int) -> Tensor:
    """Two columns; the first is above 0 in so many rows of 100."""
    values = torch.full((100, 2), -1.0)
    values[:percent, 0] = torch.arange(1.0, percent + 1)
    values[:, 1] = torch.arange(1.0, 101.0)
    return values


def test_a_percentile_under_which_nothing_of_a_site_is_left_is_refused() -> None:
    values = sparse(30)[:, :1]
    with pytest.raises(CalibrationError) as raised:
        fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Ranger(percentile=60), data=[values])
    assert str(raised.value).startswith("site 0 (")
    assert "\n  at percentile 60 its upper bound is 0, its least value, and it gives up to 30;\n" in str(raised.value)
    assert "\n  give a greater percentile (100 is the maximum), or leave it out (sites=" in str(raised.value)
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Ranger(percentile=90), data=[values], max_drop=0.9)
    assert fitact_fx.bounds(hard)["0"][1] == pytest.approx(20, abs=30 / 2048)


def test_a_site_with_some_neurons_left_and_one_that_never_fired_are_not_refused() -> None:
    scheme = Ranger("neuron", percentile=60)
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=scheme, data=[sparse(30)], max_drop=0.9)
    assert fitact_fx.bounds(hard)["0"][1].flatten().tolist() == [0.0, pytest.approx(60, abs=100 / 2048)]
    silent = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Ranger(percentile=60), data=[-torch.rand(9, 2)])
    assert fitact_fx.bounds(silent)["0"][1] == 0


@pytest.mark.parametrize("scheme", [Ranger(), ClipAct(share=0.5), "fitact"], ids=str)
@pytest.mark.parametrize("data", [None, [X]], ids=["no data", "data"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_drop": 50}, r"max_drop is 50;\n  give a share of the samples"),
        ({"max_drop": "a"}, r"max_drop is 'a';\n  give a share of the samples"),
        ({"seed": "a"}, r"seed is 'a';\n  give a whole number"),
        ({"seed": 1.5}, r"seed is 1\.5;\n  give a whole number"),
        ({"seed": True}, r"seed is True;\n  give a whole number"),
        ({"seed": 2**64}, r"seed is 18446744073709551616;\n  give a whole number of 64 bits at most"),
    ],
)
def test_limits_that_make_no_sense_are_refused_whatever_the_scheme_does_with_them(
    scheme: Any, data: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError, match=text):
        fitact_fx.harden(network(), scheme=scheme, data=data, **options)


def test_post_train_refuses_such_a_seed_too_and_takes_numpys() -> None:
    hard = fitact_fx.harden(network(), "layer")
    fitact_fx.calibrate(hard, [X])
    with pytest.raises(RecipeError, match="seed is 'a'"):
        fitact_fx.post_train(hard, [X], seed="a")  # type: ignore[arg-type]
    assert fitact_fx.post_train(hard, [X], max_drop=0.5, seed=np.int64(-3)).drop <= 0.5  # type: ignore[arg-type]
