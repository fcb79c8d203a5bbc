"""What may be spent on Clip-Act's search, and what is too little."""

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
        ({"rounds": 1.5}, "with rounds=1.5 says nothing"),
        ({"tolerance": -0.1}, "give a number from 0 up and below 1"),
    ],
)
def test_a_budget_too_small_to_mean_anything_is_refused_when_it_is_named(options, text):
    with pytest.raises(RecipeError) as raised:
        ClipAct(search=Search(**options))
    assert text in str(raised.value)


def test_the_thorough_search_spends_more_than_the_default():
    default, thorough = ClipAct().search, ClipAct.thorough().search
    assert thorough.draws > default.draws
    assert thorough.images > default.images
    assert thorough.rounds > default.rounds


def test_a_format_that_nobody_knows_is_refused_when_it_is_named():
    with pytest.raises(FaultError, match="q99"):
        Search(format="q99")


def test_rates_may_come_as_a_list():
    assert Search(rates=[1e-6, 1e-5]) == Search(rates=(1e-6, 1e-5))
