"""What may be spent on Clip-Act's search, and what is too little."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.budget import Search
from fitact_fx.errors import FaultError, RecipeError
from fitact_fx.schemes.clip_act import ClipAct


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_outside_the_maximum_is_refused(share):
    with pytest.raises(RecipeError, match=r"share is .*;\n  give a number above 0, 1 at most"):
        ClipAct(share=share)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rates": (1e-5,)}, "give 2 rates or more"),
        ({"rates": (1e-5, 1e-6)}, "give each rate once, ascending"),
        ({"rates": (1e-5, 1e-5)}, "give each rate once, ascending"),
        ({"rates": (0.0, 1e-5)}, "all between 0 and 1"),
        ({"rates": (1e-5, 1.0)}, "all between 0 and 1"),
        ({"rates": (1e-5, float("nan"))}, "all between 0 and 1"),
        ({"draws": 1}, "give 2 draws or more, or no search at all: ClipAct(share=0.5)"),
        ({"images": 31}, "give 32 images or more"),
        ({"parts": 1}, "give 2 parts or more"),
        ({"rounds": 0}, "give 1 rounds or more"),
        ({"draws": -3}, "with draws=-3 says nothing about thresholds"),
        ({"rounds": 1.5}, "rounds is 1.5;\n  give a whole number"),
        ({"images": 64.0}, "images is 64.0;\n  give a whole number"),
        ({"draws": True}, "draws is True;\n  give a whole number"),
        ({"tolerance": -0.1}, "give a number from 0 up and below 1"),
    ],
)
def test_a_budget_too_small_to_mean_anything_is_refused_when_it_is_named(options, text):
    with pytest.raises(RecipeError) as raised:
        ClipAct(search=Search(**options))
    assert text in str(raised.value)


def images_run(search):
    """How many images a search runs under faults, on a small network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    hard = fitact_fx.harden(model, scheme=ClipAct(search=search))
    data = list(torch.randn(400, 4).split(100))
    fitact_fx.calibrate(hard, data)
    record = fitact_fx.post_train(hard, data, max_drop=0.5)
    return record.injections * record.images


def test_the_thorough_search_spends_about_thirteen_times_the_default():
    rates = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2)  # at which faults are found in a network as small as this
    thorough = replace(ClipAct.thorough().search, rates=rates)
    spent = images_run(thorough) / images_run(Search(rates=rates))
    assert spent == pytest.approx(13, abs=1)


@pytest.mark.parametrize("wrong", ["q99", None, 16, ["q15.16"]])
def test_a_format_that_nobody_knows_is_refused_when_it_is_named(wrong):
    with pytest.raises(FaultError, match=rf"unknown format {re.escape(repr(wrong))}; choose one of "):
        Search(format=wrong)


def test_rates_may_come_as_a_list():
    assert Search(rates=[1e-6, 1e-5]) == Search(rates=(1e-6, 1e-5))
