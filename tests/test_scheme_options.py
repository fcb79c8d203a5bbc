"""What schemes take as options, and callers who keep no gradients or interrupt them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.batches import Batch
from fitact_fx.budget import Search
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.policies import Average, BackFlip, Smooth
from fitact_fx.progression import Progressive
from fitact_fx.schemes.clip_act import ClipAct
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct
from fitact_fx.schemes.ranger import Ranger

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
DATA = list(X.split(32))
SCHEMES = [
    FitAct(learning=Learning(steps=3, distortion=float("inf"))),
    ProAct(learning=Progressive(rounds=1, steps=2)),
    ClipAct(search=Search(rates=(1e-3, 1e-2), draws=2, images=32, parts=2, rounds=1)),
]
ALL_SCHEMES = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    ).eval()


def uppers(hard):
    return {name: upper for name, (_, upper) in fitact_fx.bounds(hard).items()}


class Activation(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x)


def test_a_policy_with_numbers_of_ones_own_is_taken_saved_and_loaded(tmp_path):
    scheme = Ranger(policy=BackFlip(near=4.0, middle=0.5))
    hard = fitact_fx.harden(Activation(), scheme=scheme, data=[torch.tensor([[1.0, 0.5]])])
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", Activation())
    assert loaded.meta["scheme"] == scheme
    # T is 1: T itself up to 4, and 0.5 from there on.
    faulted = torch.tensor([[0.75, 3.5, 4.5, 1e30]])
    for each in (hard, loaded):
        np.testing.assert_array_equal(each(faulted).numpy(), np.float32([[0.75, 1.0, 0.5, 0.0]]))


def test_a_policy_that_is_told_where_channels_lie_is_saved_as_it_was_given(tmp_path):
    hard = fitact_fx.harden(model(), scheme=FitAct(policy=Average()))
    fitact_fx.calibrate(hard, DATA)
    fitact_fx.save(hard, tmp_path / "bounds")
    assert fitact_fx.load(tmp_path / "bounds", model()).meta["scheme"] == FitAct(policy=Average())


@pytest.mark.parametrize("policy", ["nope", 3, ["zero"], BackFlip, Smooth()])
def test_what_is_no_policy_to_leave_in_place_is_refused(policy):
    with pytest.raises(RecipeError, match=r"unknown policy .*; choose one of average, backflip, clamp, rescale, zero"):
        fitact_fx.harden(model(), scheme=FitAct(policy=policy))


@pytest.mark.parametrize("wrong", [-0.1, 1, 0.5j, 50, float("nan"), True, "0.01", None])
@ALL_SCHEMES
def test_a_max_drop_that_is_no_share_is_refused_by_every_scheme(scheme, wrong):
    hard = fitact_fx.harden(model(), scheme=scheme)
    fitact_fx.calibrate(hard, DATA)
    with pytest.raises(RecipeError, match=r"max_drop is .*;\n  give a share of the samples"):
        fitact_fx.post_train(hard, DATA, max_drop=wrong)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@ALL_SCHEMES
def test_a_caller_who_keeps_no_gradients_learns_the_same_bounds(scheme, without):
    wanted = fitact_fx.harden(model(), scheme=scheme, data=DATA, max_drop=0.5)
    own = model()
    with without():
        hard = fitact_fx.harden(own, scheme=scheme, data=DATA, max_drop=0.5)
        assert not torch.is_grad_enabled()
    calibrated = fitact_fx.harden(model(), scheme=scheme)
    with without():
        fitact_fx.calibrate(calibrated, DATA)
    fitact_fx.post_train(calibrated, DATA, max_drop=0.5)
    for name, upper in uppers(wanted).items():
        assert torch.equal(uppers(hard)[name], upper)
        assert torch.equal(uppers(calibrated)[name], upper)


@pytest.mark.parametrize(
    ("made", "options", "text"),
    [
        (Learning, {"steps": 0}, "steps is 0;\n  give a whole number, 1 at least"),
        (Learning, {"steps": 1.5}, "steps is 1.5;\n  give a whole number"),
        (Learning, {"samples": True}, "samples is True;\n  give a whole number"),
        (Learning, {"learning_rate": 0}, "learning_rate is 0;\n  give a number above 0"),
        (Learning, {"slope_start": 0.0}, "slope_start is 0.0;\n  give a number above 0"),
        (Learning, {"slope_end": float("inf")}, "slope_end is inf;\n  give a number above 0"),
        (Learning, {"tightening": float("nan")}, "tightening is nan;\n  give a number from 0 up"),
        (Learning, {"held_out": 1.0}, "held_out is 1.0;\n  give a number above 0 and below 1"),
        (Learning, {"fault_rate": -1e-5}, "fault_rate is -1e-05;\n  give a number from 0 up and below 1"),
        (Learning, {"distortion": -0.1}, "distortion is -0.1;\n  give a number from 0 up, or infinity"),
        (Learning, {"distortion": float("nan")}, "distortion is nan;\n  give a number from 0 up, or infinity"),
        (Learning, {"tightening": float("inf")}, "tightening is inf;\n  give a number from 0 up"),
        (Learning, {"together": "a"}, "together is 'a';\n  give True or False"),
        (Ranger, {"follow": 1}, "follow is 1;\n  give True or False"),
        (Progressive, {"rounds": 0}, "rounds is 0;\n  give a whole number, 1 at least"),
        (Progressive, {"steps": "12"}, "steps is '12';\n  give a whole number"),
        (Progressive, {"temperature": 0}, "temperature is 0;\n  give a number above 0"),
        (Progressive, {"easing": 2}, "easing is 2;\n  give a number from 0 up, 1 at most"),
        (ProAct, {"tolerance": -0.1}, "tolerance is -0.1;\n  give a number from 0 up and below 1"),
        (ProAct, {"tolerance": float("nan")}, "tolerance is nan;\n  give a number from 0 up"),
        (ClipAct, {"share": "0.5"}, "share is '0.5';\n  give a number above 0, 1 at most"),
        (ClipAct, {"share": True}, "share is True;\n  give a number above 0, 1 at most"),
        (ClipAct, {"search": None}, "search is None;\n  give a Search, such as Search()"),
        (FitAct, {"learning": None}, "learning is None;\n  give a Learning, such as Learning()"),
        (FitAct, {"learning": Progressive()}, "such as Learning()"),
        (ProAct, {"learning": Learning()}, "\n  give a Progressive, such as Progressive()"),
        (ProAct, {"learning": Learning}, ">;\n  give a Progressive, such as Progressive()"),
        (BackFlip, {"near": -1}, "near is -1;\n  give a number from 1 up"),
        (BackFlip, {"near": 0.5}, "near is 0.5;\n  give a number from 1 up"),
        (BackFlip, {"far": float("nan")}, "far is nan;\n  give a number from 2 up"),
        (BackFlip, {"near": 8.0, "far": 4.0}, "far is 4.0;\n  give a number from 8 up"),
        (BackFlip, {"middle": "a"}, "middle is 'a';\n  give a number from 0 up"),
        (Search, {"rates": 1e-5}, "rates=(1e-05,) says nothing about thresholds;\n  give 2 rates or more"),
        (Search, {"rates": ("1e-6", "1e-5")}, "give each rate once, ascending, all between 0 and 1"),
        (Search, {"tolerance": "x"}, "tolerance is 'x';\n  give a number from 0 up and below 1"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_where_it_is_given(made, options, text):
    with pytest.raises(RecipeError) as raised:
        made(**options)
    assert text in str(raised.value)


class OtherSamplesLater:
    """All samples in the first pass, and `later` alone in every other one."""

    def __init__(self, later):
        self.passes, self.later = 0, later

    def __iter__(self):
        self.passes += 1
        return iter([X if self.passes == 1 else self.later])


def test_data_without_the_held_out_samples_in_a_later_pass_are_refused_with_the_reason():
    hard = fitact_fx.harden(model(), scheme=SCHEMES[2])
    fitact_fx.calibrate(hard, DATA)
    threshold = Holdout.of([X], 0.2).threshold
    digests = Batch((X,), {}, None).fingerprints()
    for later in ([digest > threshold for digest in digests], [digest <= threshold for digest in digests]):
        with pytest.raises(CalibrationError, match="pass data whose samples are the same in every pass"):
            fitact_fx.post_train(hard, OtherSamplesLater(X[torch.tensor(later)]))


@dataclass(frozen=True)
class Failing(FitAct):
    """A scheme that moves a bound and fails."""

    error: type[BaseException] = ValueError

    def fit(self, hard, data, max_drop, seed):
        fitact_fx.set_bounds(hard, {"2": (None, 0.25)})
        raise self.error


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_bounds_are_as_before_when_any_scheme_fails(error, stored):
    hard = fitact_fx.harden(model(), scheme=Failing(error=error))
    fitact_fx.calibrate(hard, DATA)
    fitact_fx.store_bounds(hard, stored)
    before = {name: value.clone() for name, value in hard.state_dict().items()}
    with pytest.raises(error):
        fitact_fx.post_train(hard, DATA)
    after = hard.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
