"""`verify` says whether the hardened model gives the model's outputs, and if not, which site differs first."""

import math

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import SiteError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.ReLU(), nn.ReLU(), nn.Tanh()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.third(self.drop(self.second(self.first(self.norm(x)) - 0.5)))


def inputs(scale=1.0):
    return scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def hardened():
    model = Net()
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, [inputs()])
    return model, hard


def test_equal_outputs_are_called_equal():
    model, hard = hardened()
    found = fitact_fx.verify(model, hard, inputs())
    assert found
    assert found.equal
    assert found.first_site is None
    assert found.largest_difference == 0.0
    assert found.changed == {"first": 0, "second": 0, "third": 0}
    assert str(found) == "equal: the outputs are bitwise the model's"


def test_an_unset_model_is_equal_and_verifying_it_warns_of_nothing():
    model = Net()
    assert fitact_fx.verify(model, fitact_fx.harden(model), (inputs(),))


def test_the_first_site_that_changes_a_value_is_named_with_how_many():
    model, hard = hardened()
    fitact_fx.set_bounds(hard, {"second": (None, 0.25)})
    found = fitact_fx.verify(model, hard, inputs())
    model.eval()
    with torch.no_grad():
        second = model.second(model.first(model.norm(inputs())) - 0.5)
        limit = 0.25 * (1 + 2**-10 * 1.25)
        expected = torch.tanh(second) - torch.tanh(torch.where(second <= limit, second, 0.0))
    assert not found
    assert found.first_site == "second"
    assert found.changed["first"] == 0
    assert found.changed["second"] == int((second > limit).sum()) > 0
    assert found.largest_difference == pytest.approx(expected.abs().max().item(), rel=1e-6)
    count = found.changed["second"]
    assert str(found).startswith(
        f"different by up to {found.largest_difference:.3g}; first at second, where {count} val"
    )


def test_louder_inputs_than_at_calibration_are_found_at_the_first_site():
    model, hard = hardened()
    assert fitact_fx.verify(model, hard, inputs(100.0)).first_site == "first"


def test_a_graph_that_does_something_else_is_told_from_a_bound():
    model, hard = hardened()
    for node in hard.graph.nodes:
        if node.target is torch.sub or getattr(node.target, "__name__", "") == "sub":
            node.args = (node.args[0], 0.25)
    hard.recompile()
    fitact_fx.set_bounds(hard, {"*": (-math.inf, math.inf)})
    found = fitact_fx.verify(model, hard, inputs())
    assert not found.equal
    assert found.first_site is None
    assert "no bound changed a value: the traced graph itself differs from the model" in str(found)


def test_nan_against_a_number_counts_as_infinitely_far_and_nan_against_nan_as_equal():
    model, hard = hardened()
    spoiled = inputs()
    spoiled[0, 0] = math.nan
    found = fitact_fx.verify(model, hard, spoiled)
    assert (found.first_site, found.largest_difference) == ("first", math.inf)
    assert fitact_fx.verify(model, fitact_fx.harden(model), spoiled)


def test_modes_statistics_inputs_and_random_states_are_left_alone():
    model, hard = hardened()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, batch, kept = torch.get_rng_state(), inputs(), inputs()
    assert fitact_fx.verify(model, hard, batch)
    assert model.training
    assert hard.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(batch, kept)
    assert torch.backends.mha.get_fastpath_enabled()
    unset = fitact_fx.harden(model.eval())
    fitact_fx.verify(model, unset, batch)
    with pytest.warns(fitact_fx.UncalibratedWarning):  # verifying has not used up the one warning
        unset(batch)


def test_outputs_in_a_structure_are_compared_one_by_one():
    class Pair(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            return {"y": y, "both": (x, [y * 2])}

    hard = fitact_fx.harden(Pair())
    fitact_fx.calibrate(hard, [inputs()])
    assert fitact_fx.verify(Pair(), hard, inputs())
    fitact_fx.set_bounds(hard, {"relu": (None, 0.0)})
    found = fitact_fx.verify(Pair(), hard, inputs())
    assert found.first_site == "relu"
    assert found.largest_difference == 2 * inputs().max().item()


def test_only_a_hardened_model_can_be_verified():
    with pytest.raises(
        SiteError, match=r"this Net is not a hardened model;\n  pass what fitact_fx\.harden or guard returned"
    ):
        fitact_fx.verify(Net(), Net(), inputs())


def test_inputs_by_keyword_are_verified_too():
    class Named(nn.Module):
        def forward(self, x, y):
            return torch.relu(x) - y

    hard = fitact_fx.harden(Named())
    fitact_fx.set_bounds(hard, {"*": (None, 1.0)})
    inputs = {"y": torch.zeros(2), "x": torch.tensor([0.5, 3.0])}
    found = fitact_fx.verify(Named(), hard, inputs)
    assert not found
    assert found.changed == {"relu": 1}


def test_another_number_of_outputs_is_a_difference():
    one = nn.Sequential(nn.ReLU())

    class Two(nn.Module):
        def forward(self, x):
            return torch.relu(x), x

    hard = fitact_fx.harden(Two())
    fitact_fx.set_bounds(hard, {"*": (None, torch.inf)})
    assert fitact_fx.verify(one, hard, torch.ones(2)).largest_difference == torch.inf
