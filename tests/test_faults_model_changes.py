"""A fault list meets the model as it is now: parts replaced, cast, loaded, tied or bounded since last time."""

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, FaultList, TensorFaults, find_format

SIGNS = BitFlip(rate=1, bits="sign")  # in float32 it negates everything, whatever it is


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.body(x))))


def used(fault=SIGNS, stored="float32", **options):
    """A model and a list that was applied to it before."""
    torch.manual_seed(0)
    model = Net()
    faults = fault.draw(model, stored, **options)
    with faults.applied(model):
        pass
    return model, faults


def assert_negates(faults, model):
    """Every tensor of the list, as the model has it now, is negated inside the block and itself behind it."""
    now = model.state_dict(keep_vars=True)
    before = {name: now[name].detach().clone() for name in faults.shapes}
    with faults.applied(model):
        now = model.state_dict(keep_vars=True)
        assert all(torch.equal(now[name], -tensor) for name, tensor in before.items())
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


def part_replaced(model):
    model.fc = nn.Linear(4, 3)


def parameter_replaced(model):
    model.fc.weight = nn.Parameter(torch.randn(3, 4))


def parameter_deleted_and_made_anew(model):
    del model.fc.weight
    model.fc.register_parameter("weight", nn.Parameter(torch.randn(3, 4)))


def loaded_by_assignment(model):
    state = {name: tensor * 2 for name, tensor in Net().state_dict().items()}
    model.load_state_dict(state, assign=True)


def data_replaced(model):
    model.fc.weight.data = torch.randn(3, 4)


def loaded(model):
    model.load_state_dict(Net().state_dict())


def cast_there_and_back(model):
    model.double().float()


def parts_exchanged(model):
    model.body, model.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)


CHANGES = [
    part_replaced,
    parameter_replaced,
    parameter_deleted_and_made_anew,
    loaded_by_assignment,
    data_replaced,
    loaded,
    cast_there_and_back,
    parts_exchanged,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("targets", [["parameters"], ["parameters", "buffers"]])
def test_an_old_list_hits_what_the_model_has_now(change, targets):
    model, faults = used(targets=targets)
    change(model)
    assert_negates(faults, model)
    change(model)
    assert_negates(faults, model)


def test_an_old_list_is_refused_where_the_model_now_has_another_shape():
    model, faults = used()
    model.fc = nn.Linear(4, 5)
    with pytest.raises(FaultError, match=r"^tensor 'fc\.weight' has shape \(5, 4\); the fault list is for \(3, 4\)$"):
        faults.applied(model).__enter__()


def test_an_old_list_is_refused_where_the_model_has_nothing_any_more():
    model, faults = used()
    del model.fc
    with pytest.raises(FaultError, match=r"^the model has no tensor 'fc\.weight'"):
        faults.applied(model).__enter__()


@pytest.mark.parametrize("stored", ["float32", "q15.16", "int8"])
@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16], ids=["half", "bfloat16"])
def test_an_old_list_is_refused_when_the_model_was_cast_to_what_cannot_hold_it(stored, cast):
    model, faults = used(stored=stored)
    cast(model)
    before = model.body.weight.detach().clone()
    with pytest.raises(FaultError, match=rf"^tensor 'body\.weight' is b?float16, which cannot hold {stored} numbers"):
        faults.applied(model).__enter__()
    assert torch.equal(model.body.weight, before)


def test_an_old_list_in_a_format_that_both_types_hold_hits_the_cast_model():
    model, faults = used(stored="float16")
    assert_negates(faults, model.half())


def one_hit(name, model, targets=("parameters",)):
    """Many tensors are targeted and one is hit."""
    return BitFlip(places=[(name, 0, 31)]).draw(model, "float32", targets=list(targets))


def test_a_tensor_that_is_not_hit_but_has_another_shape_is_refused_at_the_first_use():
    faults = one_hit("body.weight", Net())
    with pytest.raises(FaultError, match=r"^tensor 'fc\.weight' has shape \(5, 4\); the fault list is for \(3, 4\)$"):
        faults.applied(Net(classes=5)).__enter__()


def test_a_list_that_fits_the_model_as_it_is_now_is_not_refused_for_what_it_was():
    model, _ = used()
    model.fc = nn.Linear(4, 5)
    faults = one_hit("body.weight", Net(classes=5))
    with faults.applied(model):
        pass


def test_bounds_set_since_the_last_use_are_known_even_where_none_is_hit():
    model = Net().eval()
    hard, twin = fitact_fx.harden(model), fitact_fx.harden(model)
    with BitFlip(count=3).draw(hard).applied(hard):
        pass
    for each in (hard, twin):
        fitact_fx.set_bounds(each, {"*": (None, 6.0)})
    with one_hit("body.weight", twin, ["parameters", "bounds"]).applied(hard):
        pass


def test_an_old_list_hits_the_bounds_that_are_set_now():
    hard = fitact_fx.harden(Net().eval())
    fitact_fx.set_bounds(hard, {"*": (None, 6.0)})
    faults = BitFlip(rate=1, bits=16).draw(hard, targets=["bounds"])
    for bound in (6.0, 4.0, 2.0):
        fitact_fx.set_bounds(hard, {"*": (None, bound)})
        with faults.applied(hard):
            assert [upper.item() for _, upper in fitact_fx.bounds(hard).values()] == [bound + 1]
        assert [upper.item() for _, upper in fitact_fx.bounds(hard).values()] == [bound]


def tied():
    model = nn.Sequential()
    model.add_module("embedding", nn.Linear(4, 4, bias=False))
    model.add_module("out", nn.Linear(4, 4, bias=False))
    model.out.weight = model.embedding.weight
    return model


@pytest.mark.parametrize("name", ["embedding", "out"])
@pytest.mark.parametrize("replaced", ["embedding", "out"])
def test_an_old_list_hits_the_tensor_of_that_name_when_it_is_no_longer_tied(name, replaced):
    model = tied()
    faults = FaultList(find_format("float32"), (TensorFaults(f"{name}.weight", (4, 4), [5], [31]),))
    with faults.applied(model):
        assert model.embedding.weight is model.out.weight
    part = model.get_submodule(replaced)
    part.weight = nn.Parameter(part.weight.detach().clone())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with faults.applied(model):
        changed = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert changed == [f"{name}.weight"]


def test_an_old_list_hits_a_tensor_that_is_tied_now():
    model = tied()
    model.out.weight = nn.Parameter(torch.randn(4, 4))
    faults = SIGNS.draw(model, "float32", targets=["parameters:out.*"])
    with faults.applied(model):
        pass
    model.out.weight = model.embedding.weight
    assert_negates(faults, model)


def test_two_lists_of_faults_for_one_tied_tensor_do_not_undo_each_other_in_silence():
    model, apart = tied(), nn.Sequential()
    apart.add_module("embedding", nn.Linear(4, 4, bias=False))
    apart.add_module("out", nn.Linear(4, 4, bias=False))
    clean = model.out.weight.detach().clone()
    faults = BitFlip(places=[("embedding.weight", 0, 31), ("out.weight", 0, 31)]).draw(apart, "float32")
    with pytest.raises(FaultError, match=r"tied|same tensor|twice"), faults.applied(model):
        assert not torch.equal(model.out.weight, clean)


def test_entering_one_block_twice_is_refused_and_leaves_the_faults_of_the_first():
    model = Net()
    block = SIGNS.draw(model, "float32").applied(model)
    clean = model.fc.weight.detach().clone()
    with block:
        with pytest.raises(FaultError, match="already applied"):
            block.__enter__()
        assert torch.equal(model.fc.weight, -clean)
    assert torch.equal(model.fc.weight, clean)
    with block:  # one after the other is fine
        assert torch.equal(model.fc.weight, -clean)
    assert torch.equal(model.fc.weight, clean)
