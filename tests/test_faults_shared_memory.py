"""Tensors that share memory: tied ones are one tensor, other views of the same numbers are refused."""

import pytest
import torch
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Memory

SIGNS = BitFlip(rate=1, bits="sign")  # in float32 it negates everything, whatever it is


def two(second):
    """Two layers, the second with a weight made from the first's."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(second(model[0].weight.data))
    return model


def test_parameters_over_the_same_storage_are_one_tensor():
    model = two(lambda weight: weight)
    before = model[0].weight.detach().clone()
    faults = SIGNS.draw(model, "float32")
    assert [one.name for one in faults.tensors] == ["0.weight"]
    with faults.applied(model):
        assert torch.equal(model[1].weight, -before)
    assert torch.equal(model[1].weight, before)


@pytest.mark.parametrize("view", [torch.t, lambda weight: weight[:2], lambda weight: weight[1:, 1:]])
def test_another_view_of_a_tensor_is_refused_by_name(view):
    model = two(view)
    for targets in (None, ["parameters:1.*"]):
        with pytest.raises(FaultError) as error:
            SIGNS.draw(model, "float32", targets=targets)
        expected = "shares memory with '0.weight', which is another view of it; give it memory with .clone()"
        assert expected in str(error.value) or "'1.weight'" in str(error.value)


def test_neighbours_in_one_storage_are_no_overlap():
    flat = torch.randn(32)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight, model[1].weight = nn.Parameter(flat[:16].view(4, 4)), nn.Parameter(flat[16:].view(4, 4))
    before = flat.clone()
    with SIGNS.draw(model, "float32").applied(model):
        assert torch.equal(flat, -before)
    assert torch.equal(flat, before)


def test_nested_use_is_refused_through_any_view():
    one = nn.Linear(4, 4, bias=False)
    other = nn.Linear(4, 2, bias=False)
    other.weight = nn.Parameter(one.weight.data[:2])
    with SIGNS.draw(one, "float32").applied(one), pytest.raises(FaultError, match="already applied"):
        SIGNS.draw(other, "float32").applied(other).__enter__()


def test_an_expanded_buffer_is_refused():
    model = nn.Linear(2, 2)
    model.register_buffer("row", torch.ones(1, 3).expand(4, 3))
    with pytest.raises(FaultError, match=r"^tensor 'row' is expanded: several of its elements are one number"):
        SIGNS.draw(model, "float32", targets=["buffers"])


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(FaultError, match=r"^tensor 'weight' is on the meta device and holds no numbers"):
        SIGNS.draw(nn.Linear(2, 2, device="meta"), "float32")


def test_a_write_inside_the_block_is_told():
    model = nn.Linear(4, 4)
    faults = BitFlip(places=[("weight", 0, 31)]).draw(model, "float32")
    before = model.weight[0, 0].item()
    told = pytest.raises(FaultError, match=r"^tensor 'weight' was written to while faults were applied")
    with told, torch.no_grad(), faults.applied(model):
        model.weight.fill_(7)
    assert model.weight[0, 0].item() == before
    assert (model.weight.flatten()[1:] == 7).all()
    with faults.applied(model):
        pass


@pytest.mark.parametrize(
    "change", [nn.Module.half, nn.Module.double, lambda model: model.to(memory_format=torch.channels_last)]
)
def test_a_memory_that_is_out_of_date_is_refused(change):
    model = nn.Conv2d(3, 4, 3)
    memory = Memory.of(model)
    faults = SIGNS.draw(model, "float32")
    change(model)
    with pytest.raises(FaultError, match=r"^tensor 'weight' was moved, cast or replaced;\n  make the Memory anew$"):
        faults.applied(memory).__enter__()


def test_a_claim_that_is_never_given_back_does_not_reach_other_models():
    for _ in range(20):
        model = nn.Linear(4, 4)
        SIGNS.draw(model, "float32").applied(model).__enter__()
        del model


def test_int8_scales_are_worked_out_once_however_lists_are_drawn(monkeypatch):
    from fitact_fx.faults.formats.int8 import Int8

    calls = []
    original = Int8.scale

    def counted(self, values, *, each=False):
        calls.append(values.shape)
        return original(self, values, each=each)

    monkeypatch.setattr(Int8, "scale", counted)
    model = nn.Linear(40, 30, bias=False)
    for trial in range(5):
        with BitFlip(count=3).draw(model, "int8", trial=trial).applied(model):
            pass
    assert len(calls) == 1
    with torch.no_grad():
        model.weight.mul_(2)
    with BitFlip(count=3).draw(model, "int8").applied(model):
        pass
    assert len(calls) == 2
