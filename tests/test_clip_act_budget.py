"""What may be spent on Clip-Act's search, and what is too little."""

import re

import pytest

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


def injections_on_images(search):
    """At one site, without stopping early: edges, lists of faults for each, images for each of those."""
    return search.rounds * (search.parts - 1) * search.draws * len(search.rates) * search.images


def test_the_thorough_search_spends_as_much_more_than_the_default_as_it_says():
    spent = injections_on_images(ClipAct.thorough().search) / injections_on_images(ClipAct().search)
    assert round(spent) == 14
    assert "fourteen times" in ClipAct.thorough.__doc__


@pytest.mark.parametrize("wrong", ["q99", None, 16, ["q15.16"]])
def test_a_format_that_nobody_knows_is_refused_when_it_is_named(wrong):
    with pytest.raises(FaultError, match=rf"unknown format {re.escape(repr(wrong))}; choose one of "):
        Search(format=wrong)


def test_rates_may_come_as_a_list():
    assert Search(rates=[1e-6, 1e-5]) == Search(rates=(1e-6, 1e-5))
