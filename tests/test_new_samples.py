"""Bounds from few samples cost accuracy on new ones, which a held-out part of the same samples does not show."""

import re
import warnings

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import learning, progression
from fitact_fx.errors import CostlyWarning
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.progression import Progressive
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct

SCHEMES = {
    "fitact": FitAct(learning=Learning(steps=5)),
    "proact": ProAct(learning=Progressive(steps=2, rounds=1)),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def images(count):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def post_trained(scheme, granularity, count):
    hard = fitact_fx.harden(net(), granularity, scheme)
    fitact_fx.calibrate(hard, [images(count)])
    fitact_fx.post_train(hard, [images(count)], max_drop=0.01)
    return hard


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_warning_tells_what_others_maxima_cost(scheme):
    with pytest.warns(CostlyWarning, match="on new samples") as told:
        post_trained(scheme, "neuron", 100)
    holdout = Holdout.of([images(100)], 0.2)
    seen, new = (next(iter(part)).args[0] for part in (holdout.learned_batches(), holdout.held_out_batches()))
    first, _, last = net()
    with torch.no_grad():
        hidden, most = first(new).relu(), first(seen).relu().amax(0)
        wrong = last(hidden.where(hidden <= most, 0.0)).argmax(1) != last(hidden).argmax(1)
    points = 100 * float(wrong.double().mean())
    assert 10 < points < 90
    (message,) = (str(each.message) for each in told if "on new samples" in str(each.message))
    assert re.findall(r"[\d.]+", message)[:3] == [f"{len(seen)}", f"{points:.1f}", f"{len(new)}"]
    assert told[0].filename == __file__


@pytest.mark.parametrize(("granularity", "count"), [("layer", 100), ("neuron", 20_000)])
def test_few_bounds_and_many_samples_are_no_reason_for_it(granularity, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        post_trained(SCHEMES["fitact"], granularity, count)


@pytest.mark.filterwarnings("ignore::fitact_fx.CostlyWarning")
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_to_ask_changes_no_bound(scheme, monkeypatch):
    asked = fitact_fx.bounds(post_trained(scheme, "neuron", 100))
    for module in (learning, progression):
        monkeypatch.setattr(module, "warn_of_new_samples", lambda *_: None)
    unasked = fitact_fx.bounds(post_trained(scheme, "neuron", 100))
    assert all(torch.equal(asked[name][1], unasked[name][1]) for name in asked | unasked)
