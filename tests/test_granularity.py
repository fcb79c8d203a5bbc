"""How many bounds a site has, against NumPy: whoever shares a bound shares its maximum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitact_fx.errors import RecipeError
from fitact_fx.granularity import Channel, Layer, Neuron, at_dim, matching, named, resolve

SITES = ("stem.relu", "layer1.0.relu", "layer1.0.relu_1", "classifier.1", "classifier.4")


@pytest.mark.parametrize(
    ("granularity", "shape", "bound"),
    [
        (Neuron(), (8, 3, 5, 7), (1, 3, 5, 7)),
        (Neuron(), (8, 10), (1, 10)),
        (Neuron(), (8,), (1,)),
        (Neuron(), (), ()),
        (Channel(1), (8, 3, 5, 7), (1, 3, 1, 1)),
        (Channel(-1), (8, 5, 7, 3), (1, 1, 1, 3)),
        (Channel(2), (8, 5, 3), (1, 1, 3)),
        (Channel(), (8, 10), (1, 10)),
        (Channel(0), (8, 10), (1, 10)),
        (Layer(), (8, 3, 5, 7), ()),
        (Layer(), (), ()),
    ],
)
def test_a_bound_has_the_shape_its_granularity_says(granularity, shape, bound):
    assert granularity.bound_shape(shape) == bound


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    granularity=st.sampled_from([Neuron(), Channel(1), Channel(-1), Layer()]),
)
def test_the_elements_that_share_a_bound_are_those_it_broadcasts_to(shape, granularity):
    if isinstance(granularity, Channel) and len(shape) == 1:
        granularity = Channel(-1)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    largest = values.max(granularity.shared_dims(shape)).reshape(granularity.bound_shape(shape))
    spread = np.broadcast_to(largest, shape)
    for index in np.ndindex(shape):
        sharing = values[np.broadcast_to(_id(granularity, shape), shape) == _id(granularity, shape)[index]]
        assert spread[index] == sharing.max()


def _id(granularity, shape):
    """A number for each element: the same for two elements exactly when they should share a bound."""
    axes = np.indices(shape)
    if isinstance(granularity, Layer):
        return np.zeros(shape, int)
    if isinstance(granularity, Channel):
        return axes[1 if len(shape) == 2 else granularity.dim]
    return sum((axis * 10**place for place, axis in enumerate(axes[1:])), np.zeros(shape, int))


@pytest.mark.parametrize(("dim", "shape"), [(None, (2, 3, 4)), (3, (2, 3, 4)), (None, ())])
def test_a_channel_that_is_not_known_is_not_guessed(dim, shape):
    with pytest.raises(RecipeError, match=f"activation of rank {len(shape)}, channel dimension {dim}"):
        Channel(dim).bound_shape(shape)


@pytest.mark.parametrize("shape", [(3, 5, 7), (8, 3)])
def test_a_channel_known_for_another_rank_is_refused(shape):
    with pytest.raises(RecipeError, match=f"^activation of rank {len(shape)}, channel known for rank 4$"):
        Channel(1, 4).bound_shape(shape)
    with pytest.raises(RecipeError, match="channel known for rank 4"):
        Channel(1, 4).shared_dims(shape)
    assert Channel(1, 4).bound_shape((8, 3, 5, 7)) == (1, 3, 1, 1)


def test_only_a_channel_is_told_where_it_lies():
    assert at_dim(Channel(), 1, 4) == Channel(1, 4)
    assert at_dim(Layer(), 1, 4) == Layer()
    assert at_dim(Channel(), -1) == Channel(-1)
    assert at_dim(Neuron(), -1) == Neuron()
    assert at_dim(Layer(), None) == Layer()


def test_one_name_is_for_every_site():
    assert resolve("channel", SITES) == dict.fromkeys(SITES, Channel())


def test_the_last_glob_that_matches_wins():
    chosen = resolve({"*": "layer", "layer1.*": "channel", "layer1.0.relu_1": "neuron"}, SITES)
    assert chosen == {
        "stem.relu": Layer(),
        "layer1.0.relu": Channel(),
        "layer1.0.relu_1": Neuron(),
        "classifier.1": Layer(),
        "classifier.4": Layer(),
    }
    assert set(resolve({"classifier.4": "neuron", "*": "layer"}, SITES).values()) == {Layer()}


def test_sites_that_no_glob_matches_are_left_to_the_scheme():
    assert resolve({"classifier.?": "neuron"}, SITES) == {"classifier.1": Neuron(), "classifier.4": Neuron()}


def test_globs_tell_upper_from_lower_case():
    with pytest.raises(RecipeError, match="matches no site"):
        resolve({"Layer1.*": "layer"}, SITES)


def test_a_pattern_that_matches_nothing_shows_what_there_is():
    with pytest.raises(RecipeError) as error:
        resolve({"*": "layer", "head.*": "neuron"}, (*SITES, "last"))
    expected = "the pattern 'head.*' matches no site; the sites are "
    assert str(error.value) == expected + ", ".join(SITES) + ", ..."
    with pytest.raises(RecipeError, match=r"the sites are a, b$"):
        matching("c", ("a", "b"))


@pytest.mark.parametrize("wrong", ["pixel", 5, None, ["layer"], {"*": "pixel"}, {"*": None}])
def test_an_unknown_granularity_lists_the_valid_ones(wrong):
    with pytest.raises(RecipeError, match=r"^unknown granularity .*; choose one of channel, layer, neuron$"):
        resolve(wrong, SITES)


def test_names_are_those_of_the_public_interface():
    assert [named(name).name for name in ("neuron", "channel", "layer")] == ["neuron", "channel", "layer"]
