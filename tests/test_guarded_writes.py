"""Models that write to the Parameters that they run on: no write is lost without a word."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import SiteError

MODES = (torch.no_grad, torch.inference_mode)


def in_place(count):
    with torch.no_grad():
        count.mul_(0.5)


def to_its_data(count):
    count.data.mul_(0.5)


def other_order(count):
    count.data.copy_(count.data.flip(0))


def other_signs(count):
    count.data.neg_()


def other_data(count):
    count.data = count.data * 0.5


def other_type(count):
    count.data = count.data.half() * 0.5


def another_parameter(count):
    return nn.Parameter(count.detach() * 0.5, requires_grad=False)


WRITES = {
    in_place: [0.5, -1.0],
    to_its_data: [0.5, -1.0],
    other_order: [-2.0, 1.0],
    other_signs: [-1.0, 2.0],
    other_data: [0.5, -1.0],
    other_type: [0.5, -1.0],
    another_parameter: [0.5, -1.0],
}


class Counting(nn.Module):
    """Code that no graph can hold, which writes to a Parameter of its own while `writing`."""

    def __init__(self, write):
        super().__init__()
        self.write, self.writing = write, True
        self.count = nn.Parameter(torch.tensor([1.0, -2.0]), requires_grad=False)
        self.linear, self.act = nn.Linear(2, 2), nn.ReLU()

    def forward(self, x):
        if self.writing and x.sum() > -100:
            another = self.write(self.count)
            if another is not None:
                self.count = another
        return self.act(self.linear(x) * self.count)


def counting(write, inside):
    torch.manual_seed(0)
    model = Counting(write)
    return (nn.Sequential(model, nn.Linear(2, 2)) if inside else model).eval()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_a_clean_parameter_stays_and_is_refused_at_the_first_run(write, inside):
    model, x = counting(write, inside), torch.ones(1, 2)
    guarded = fitact_fx.guard(model, frontend="partial")
    name, where = ("0.count", "module '0'") if inside else ("count", "the model itself")
    told = rf"parameter {name}: the model writes to it when it runs, in {where} \(Counting\) or its hooks, .*\n  keep"
    with torch.no_grad(), pytest.raises(SiteError, match=told):
        guarded(x)
    assert guarded.get_parameter(name).tolist() == WRITES[write]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_what_stands_for_a_faulty_parameter_is_refused_at_any_run(write, mode):
    model, x = counting(write, inside=True), torch.ones(1, 2)
    guarded = fitact_fx.guard(model, frontend="partial")
    count, part = guarded.get_parameter("0.count"), guarded.get_submodule("0")
    part.writing = False
    with mode():
        guarded(x)
        count.data[0] = math.nan
        assert guarded(x).isfinite().all()
        part.writing = True
        with pytest.raises(SiteError, match="keep what a run changes in a buffer"):
            guarded(x)
    assert guarded.get_parameter("0.count") is count
    assert count[0].isnan()
    assert count[1] == -2


def test_hooks_that_keep_weights_in_a_range_reach_the_parameters():
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.ones(2, 4)

    def clip(module, args):
        module.weight.data.clamp_(-0.2, 0.2)

    model[0].register_forward_pre_hook(clip)
    with pytest.raises(SiteError, match=r"0\.weight: the model writes to it .* in module '0' \(Linear\) or its hooks"):
        fitact_fx.guard(copy.deepcopy(model))(x)
    clip(model[0], None)
    guarded = fitact_fx.guard(model)
    with torch.no_grad():
        guarded(x)
        model[0].weight.mul_(0.9)  # inside the limits
        model[0].weight[0, 0] = 0.0
        expected = x @ model[0].weight.clamp(-0.2, 0.2).t() + model[0].bias
        assert torch.equal(guarded(x), expected)


@pytest.mark.parametrize("write", WRITES)
def test_hooks_of_all_modules_are_refused_a_write_as_well(write):
    model, x = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).eval(), torch.ones(1, 2)
    model[0].weight.data = torch.tensor([1.0, -2.0])
    guarded = fitact_fx.guard(model)

    def hook(module, args, output):
        if isinstance(module, nn.BatchNorm1d):
            another = write(module.weight)
            module.weight = module.weight if another is None else another

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        with torch.no_grad(), pytest.raises(SiteError, match=r"parameter 0\.weight: the model writes to it"):
            guarded(x)
    finally:
        handle.remove()


def test_what_the_model_raises_is_heard_of_and_not_what_it_wrote_before():
    guarded = fitact_fx.guard(counting(in_place, inside=True), frontend="partial")
    guarded.get_submodule("0").act = None
    with pytest.raises(TypeError, match="not callable"):
        guarded(torch.ones(1, 2))


def test_what_a_hook_raises_behind_a_write_is_heard_of():
    guarded = fitact_fx.guard(counting(to_its_data, inside=True), frontend="partial")
    handle = guarded.get_submodule("0").register_forward_hook(refuse, prepend=True)
    with pytest.raises(ValueError, match="refused"):  # and no warning, which would be an error here
        guarded(torch.ones(1, 2))
    handle.remove()
    with pytest.raises(SiteError, match=r"parameter 0\.count"):  # a run that was broken off was not the first
        guarded(torch.ones(1, 2))


def refuse(*_):
    raise ValueError("refused")


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused_also_while_another_exception_is_dealt_with(write):
    guarded = fitact_fx.guard(counting(write, inside=True), frontend="partial")
    try:
        refuse()
    except ValueError:
        with pytest.raises(SiteError, match=r"parameter 0\.count"):
            guarded(torch.ones(1, 2))


class Silent(Counting):
    """Gives nothing back: what it does is in what it writes."""

    def forward(self, x):
        super().forward(x)


class Noting(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.silent, self.linear, self.act = Silent(write), nn.Linear(2, 2), nn.ReLU()

    def forward(self, x):
        self.silent(x)
        return self.act(self.linear(x))


@pytest.mark.parametrize("write", WRITES)
def test_a_write_of_a_module_that_returns_nothing_is_refused(write):
    guarded = fitact_fx.guard(Noting(write).eval(), frontend="partial")
    with torch.no_grad(), pytest.raises(SiteError, match=r"parameter silent\.count: the model writes to it"):
        guarded(torch.ones(1, 2))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_refuse_writes_as_well(again):
    guarded = again(fitact_fx.guard(counting(in_place, inside=True), frontend="partial"))
    with pytest.raises(SiteError, match=r"parameter 0\.count"):
        guarded(torch.ones(1, 2))


def test_a_model_that_trains_between_its_runs_is_not_taken_for_one_that_writes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    guarded = fitact_fx.guard(model)
    optimizer = torch.optim.SGD(guarded.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        guarded(torch.ones(2, 4)).sum().backward()
        optimizer.step()


class Kind(nn.Parameter):
    """A Parameter with something more to it."""

    def doubled(self):
        return self * 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = Kind(torch.ones(4))
        self.weight.scale = 3.0

    def forward(self, x):
        return x * self.weight.doubled() * self.weight.scale if x.sum() > -100 else x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_stands_for_a_faulty_parameter_has_its_attributes_and_its_class(mode):
    model, x = nn.Sequential(Scaled(), nn.ReLU()).eval(), torch.ones(2, 4)
    guarded = fitact_fx.guard(model, frontend="partial")
    with mode():
        assert guarded(x).tolist() == [[6.0] * 4] * 2
        model[0].weight.data[1] = math.inf
        assert guarded(x).tolist() == [[6.0, 0.0, 6.0, 6.0]] * 2
