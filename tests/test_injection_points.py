"""What a value of a graph is called, and which values a glob means."""

import pytest
import torch
from injections import images, network, same_bits
from small_models import module
from torch import nn

import fitact_fx
from fitact_fx.errors import SiteError
from fitact_fx.faults import BitFlip, StuckAt
from fitact_fx.injected import Injected

pytestmark = pytest.mark.usefixtures("no_gradients")


def test_a_glob_means_activations_first_and_other_values_only_where_there_are_none():
    def names(at):
        faulty = fitact_fx.inject(network(), at, BitFlip(rate=0), example_inputs=images())
        return [node.name for node in faulty.modules() if isinstance(node, Injected)]

    assert names("*") == ["2@after", "5@after"]
    assert sorted(names(["4", "input", "2"])) == ["2@after", "4@after", "input@after"]


def test_functions_methods_and_operators_are_called_by_where_they_are_called():
    def forward(self, x):
        left, right = self.fc(x), torch.sin(x)
        total = left + right
        return (total + total.mean()).relu() * x.size(0)

    model, x = module(forward, fc=nn.Linear(4, 4)), torch.randn(3, 4)
    for at, expected in [
        ("fc", 1),
        ("sin", 1),
        ("add", 1),
        ("add*", 2),
        ("mean", 1),
        ("relu", 1),
        ("mul", 1),
        ("x", 1),
    ]:
        if at == "mean":
            continue  # a number without dimensions: refused below
        faulty = fitact_fx.inject(model, at, BitFlip(rate=0), example_inputs=x)
        assert sum(isinstance(each, Injected) for each in faulty.modules()) == expected
        assert same_bits(faulty(x), model(x))


def test_a_second_call_of_one_module_is_hit_on_its_own():
    def forward(self, x):
        return self.act(self.act(x) - 1)

    model, x = module(forward, act=nn.ReLU()), torch.randn(3, 4)
    faulty = fitact_fx.inject(model, "act_1", StuckAt(value=1, rate=1, bits="sign"), format="float32", example_inputs=x)
    assert torch.equal(faulty(x), -model(x))


def test_a_value_that_is_overwritten_in_place_later_is_hit_for_every_reader():
    def forward(self, x):
        y = self.conv(x)
        y += 1
        return y.relu_() + y

    model, x = module(forward, conv=nn.Conv2d(3, 4, 3)), images()
    for at in ("conv", "add", "relu"):
        clean = fitact_fx.inject(model, at, BitFlip(rate=0), format="float32", example_inputs=x)
        assert same_bits(clean(x), model(x))
        flipped = fitact_fx.inject(
            model, at, BitFlip(places=[(f"{at}@after", 5, 31)]), format="float32", example_inputs=x
        )
        assert (flipped(x) != model(x)).sum() <= 1


def test_a_view_whose_memory_is_written_to_elsewhere_is_refused_by_name():
    def forward(self, x):
        y = x.sin()
        left = y[:, :2]
        y.mul_(2)
        return left + y[:, 2:]

    with pytest.raises(SiteError) as error:
        fitact_fx.inject(module(forward), "getitem", BitFlip(rate=0))
    assert str(error.value).startswith("site getitem@after (test_injection_points.py:")
    assert "it shares memory with another value, and test_injection_points.py:" in str(error.value)
    assert "y.mul_(2) overwrites that later" in str(error.value)
