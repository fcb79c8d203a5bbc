"""The properties can fail: each finds a miscompile that is planted, within its default number of examples."""

import pytest
import test_properties as properties
from hypothesis import Phase, settings

from fitact_fx import granularity, sites
from fitact_fx.passes import functionalising


@pytest.fixture
def found(monkeypatch):
    """Whether a property fails; the smallest example is not of interest here, nor what Hypothesis prints of it."""

    def found(property_):
        given = property_._hypothesis_internal_use_settings
        quick = settings(given, phases=[Phase.generate], report_multiple_bugs=False)
        monkeypatch.setattr(property_, "_hypothesis_internal_use_settings", quick)
        with pytest.raises(AssertionError):
            property_()
        return True

    return found


def test_a_dropped_in_place_result_is_found(monkeypatch, found):
    monkeypatch.setattr(functionalising, "_redirect_later_readers", lambda node, overwrites: None)
    assert found(properties.test_unset_and_infinite_bounds_give_bitwise_the_clean_output)


def test_a_forgotten_view_is_found(monkeypatch, found):
    monkeypatch.setattr(functionalising, "sharing_memory", lambda source, before, overwrites: {source})
    assert found(properties.test_unset_and_infinite_bounds_give_bitwise_the_clean_output)


def test_a_bound_that_leaks_across_channels_is_found(monkeypatch, found):
    # A channel that is not known is still refused: it is the leak itself that is to be found.
    known = granularity.Channel._dim
    everywhere = {
        "shared_dims": lambda self, shape: tuple(range(len(shape))) if known(self, shape) >= 0 else (),
        "bound_shape": lambda self, shape: (1,) * len(shape) if known(self, shape) >= 0 else (),
    }
    for name, wrong in everywhere.items():
        monkeypatch.setattr(granularity.Channel, name, wrong)
    assert found(properties.test_channel_bounds_are_the_extremes_of_the_neurons_of_each_channel)


def test_a_shared_module_that_is_bounded_once_is_found(monkeypatch, found):
    whole = sites.value_names

    def once(graph_module):
        targets, names = set(), {}
        for node, name in whole(graph_module).items():
            if node.op != "call_module" or node.target not in targets:
                names[node] = name
            targets.add(node.target)
        return names

    monkeypatch.setattr(sites, "value_names", once)
    assert found(properties.test_each_call_of_an_activation_module_is_a_site_of_its_own)
