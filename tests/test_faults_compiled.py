"""A model wrapped by torch.compile has the names and the faults of the original."""

import copy

import pytest
import torch
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Burst, RandomWord

SIGNS = BitFlip(rate=1, bits="sign")  # in float32 it negates everything, whatever it is


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.body(x))))


@pytest.mark.parametrize(
    "fault", [BitFlip(rate=0.05), BitFlip(count=7), Burst(rate=0.02, width=3), RandomWord(count=4)]
)
@pytest.mark.parametrize("targets", [None, ["parameters", "buffers"], ["parameters:fc.*"]])
def test_a_compiled_model_has_the_names_and_faults_of_the_original(fault, targets):
    model = Net().eval()
    compiled = torch.compile(model, backend="eager")
    assert fault.draw(compiled, seed=3, targets=targets) == fault.draw(model, seed=3, targets=targets)


def test_a_compiled_model_runs_with_the_faults_and_without_them_again():
    torch.manual_seed(1)
    model = Net().eval()
    compiled, faulty, x = torch.compile(model, backend="eager"), copy.deepcopy(model), torch.randn(5, 4)
    with torch.no_grad():
        for parameter in faulty.parameters():
            parameter.neg_()
        clean, wrong = model(x), faulty(x)
        assert not torch.equal(clean, wrong)
        for one, other in ((compiled, model), (model, compiled), (compiled, compiled)):
            with SIGNS.draw(one, "float32").applied(other):
                assert torch.equal(compiled(x), wrong)
            assert torch.equal(compiled(x), clean)
        faults = SIGNS.draw(compiled, "float32")
        model.fc = nn.Linear(4, 3)
        before = model.fc.weight.clone()
        with faults.applied(compiled):
            assert torch.equal(model.fc.weight, -before)
        assert torch.equal(model.fc.weight, before)


def test_faults_applied_to_the_original_are_applied_to_its_compiled_form():
    model = Net().eval()
    compiled = torch.compile(model, backend="eager")
    faults = BitFlip(count=3).draw(model)
    with faults.applied(compiled), pytest.raises(FaultError, match="already applied"):
        faults.applied(model).__enter__()


def test_a_part_that_is_compiled_keeps_its_names_and_faults():
    model = Net().eval()
    expected = list(BitFlip(rate=0.1).draw(model, seed=2).rows)
    model.fc = torch.compile(model.fc, backend="eager")
    assert list(BitFlip(rate=0.1).draw(model, seed=2).rows) == expected
