"""The properties can fail: each finds a miscompile that is planted, within its default number of examples."""

import pytest
import test_properties as properties

from fitact_fx import granularity, naming
from fitact_fx.passes import functionalising


def found(property_):
    """Whether the property fails; what Hypothesis prints of it is not of interest here."""
    with pytest.raises(AssertionError):
        property_()
    return True


def test_a_dropped_in_place_result_is_found(monkeypatch):
    monkeypatch.setattr(functionalising, "_redirect_later_readers", lambda node, overwrites: None)
    assert found(properties.test_unset_and_infinite_bounds_give_bitwise_the_clean_output)


def test_a_forgotten_view_is_found(monkeypatch):
    monkeypatch.setattr(functionalising, "sharing_memory", lambda source, before, overwrites: {source})
    assert found(properties.test_unset_and_infinite_bounds_give_bitwise_the_clean_output)


def test_a_bound_that_leaks_across_channels_is_found(monkeypatch):
    monkeypatch.setattr(granularity.Channel, "shared_dims", lambda self, shape: tuple(range(len(shape))))
    monkeypatch.setattr(granularity.Channel, "bound_shape", lambda self, shape: (1,) * len(shape))
    assert found(properties.test_channel_bounds_are_the_extremes_of_the_neurons_of_each_channel)


def test_a_shared_module_that_is_bounded_once_is_found(monkeypatch):
    whole = naming.activation_names

    def once(graph_module):
        targets, names = set(), {}
        for node, name in whole(graph_module).items():
            if node.op != "call_module" or node.target not in targets:
                names[node] = name
            targets.add(node.target)
        return names

    monkeypatch.setattr(naming, "activation_names", once)
    assert found(properties.test_each_call_of_an_activation_module_is_a_site_of_its_own)
