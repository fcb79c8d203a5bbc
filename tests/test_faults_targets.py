"""Which memory faults are drawn for: kinds, globs, what is targeted when nothing is said, and what is refused."""

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, RandomWord, StuckAt, Target


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.relu(self.norm(self.fc(x)))


class Net(nn.Module):
    """Parameters, statistics, an int8 buffer, and what is no number: counters, masks, nothing."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = Block()
        self.layer10 = nn.Linear(3, 2)
        self.register_buffer("table", torch.arange(6, dtype=torch.int8))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("nothing", None)
        self.register_buffer("transient", torch.ones(2), persistent=False)

    def forward(self, x):
        return torch.tanh(self.layer10(self.layer2(self.layer1(x)))) + self.table[:2] * self.transient


def hardened(upper=6.0):
    hard = fitact_fx.harden(Net().eval())
    fitact_fx.set_bounds(hard, {"*": (None, upper)})
    return hard


def shapes(model, targets, stored="q15.16", **often):
    fault = BitFlip(**(often or {"rate": 0.1}))
    return dict(fault.draw(model, stored, targets=targets).shapes)


PARAMETERS = {name: tuple(parameter.shape) for name, parameter in Net().named_parameters()}
STATISTICS = {
    f"{block}.norm.running_{kind}": (3,) for block in ("layer1.0", "layer1.1", "layer2") for kind in ("mean", "var")
}
SITES = ["layer1.0.relu", "layer1.1.relu", "layer2.relu", "tanh"]


def bound_names(hard):
    """The tensors that hold the bounds, by what the model itself says."""
    return {name for name, _ in hard.named_buffers() if name.endswith((".upper", ".lower"))}


def test_parameters_are_all_parameters():
    assert shapes(Net(), ["parameters"]) == shapes(Net(), "parameters") == PARAMETERS


def test_buffers_are_the_numbers_beside_the_parameters_and_no_counters_or_masks():
    expected = STATISTICS | {"table": (6,)}  # what is not saved is made again by the code
    assert shapes(Net(), ["buffers"], "int8") == expected


def test_bounds_are_the_bounds_that_are_set():
    hard = hardened()
    found = shapes(hard, ["bounds"])
    assert len(found) == len(SITES)
    assert set(found) == bound_names(hard)
    with BitFlip(rate=1, bits=16).draw(hard, targets="bounds").applied(hard):
        assert {upper.item() for _, upper in fitact_fx.bounds(hard).values()} == {7.0}
    assert {upper.item() for _, upper in fitact_fx.bounds(hard).values()} == {6.0}


def test_both_sides_of_a_bound_are_hit():
    hard = fitact_fx.harden(Net().eval())
    fitact_fx.set_bounds(hard, {"*": (-1.0, 6.0)})
    assert len(shapes(hard, ["bounds"])) == 2 * len(SITES)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("parameters:layer1.*", [name for name in PARAMETERS if name.startswith("layer1.")]),
        ("parameters:layer1*", [name for name in PARAMETERS if name.startswith("layer1")]),
        ("parameters:*.bias", [name for name in PARAMETERS if name.endswith(".bias")]),
        ("parameters:layer?.*.weight", [name for name in PARAMETERS if name[6] == "." and name.endswith("weight")]),
        ("parameters:layer[2-9].*", [name for name in PARAMETERS if name.startswith("layer2.")]),
        ("parameters:layer10.weight", ["layer10.weight"]),
        ("parameters:", list(PARAMETERS)),
        ("buffers:*.running_var", [name for name in STATISTICS if name.endswith("var")]),
        (Target("buffers", "layer2.*"), ["layer2.norm.running_mean", "layer2.norm.running_var"]),
        (Target("parameters"), list(PARAMETERS)),
    ],
)
def test_a_glob_chooses_by_name(target, expected):
    assert sorted(shapes(Net(), [target])) == sorted(expected)


def test_several_targets_are_their_union_and_what_two_mean_is_hit_once():
    targets = ["parameters:layer2.*", "buffers:table", Target("parameters", "*.bias"), "parameters:layer2.fc.bias"]
    found = BitFlip(count=0).draw(Net(), "int8", targets=targets)
    expected = {name for name in PARAMETERS if name.startswith("layer2.") or name.endswith(".bias")} | {"table"}
    assert len(found.tensors) == len(found.shapes)
    assert set(found.shapes) == expected
    places = sum(torch.Size(shape).numel() for shape in found.shapes.values())
    assert len(BitFlip(count=8 * places).draw(Net(), "int8", targets=targets)) == 8 * places


def test_faults_stay_in_what_is_targeted():
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    faults = StuckAt(rate=0.5, value=1).draw(model, "int8", targets=["buffers:layer1.*", "parameters:layer10.*"])
    with faults.applied(model):
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in STATISTICS if name.startswith("layer1.")} | {"layer10.weight", "layer10.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fault", [BitFlip(rate=0.1), RandomWord(rate=0.1)])
def test_a_rate_is_for_parameters_and_bounds_if_nothing_is_said(fault):
    hard = hardened()
    assert set(fault.draw(Net()).shapes) == set(PARAMETERS)
    assert set(fault.draw(fitact_fx.harden(Net().eval())).shapes) == set(PARAMETERS)
    assert set(fault.draw(hard).shapes) == set(PARAMETERS) | bound_names(hard)


def test_a_count_is_for_parameters_if_nothing_is_said():
    assert set(BitFlip(count=5).draw(hardened()).shapes) == set(PARAMETERS)


def test_what_is_targeted_changes_no_fault_of_a_rate():
    every = BitFlip(rate=0.05).draw(hardened(), seed=4)
    some = BitFlip(rate=0.05).draw(hardened(), seed=4, targets=["parameters:layer2.*"])
    assert list(some.rows) == [row for row in every.rows if row.tensor.startswith("layer2.")]
    assert len(some)


@pytest.mark.parametrize("name", ["a.weight", "b.*", "c.weight"])
def test_any_name_of_a_tied_parameter_finds_it(name):
    model = nn.Sequential()
    for each in "bca":
        model.add_module(each, nn.Linear(2, 2, bias=False))
    model.c.weight = model.b.weight = model.a.weight
    assert shapes(model, [f"parameters:{name}"]) == {"a.weight": (2, 2)}
    clean = model.a.weight.detach().clone()
    with BitFlip(rate=1, bits="sign").draw(model, "float32", targets=[f"parameters:{name}"]).applied(model):
        assert torch.equal(model.c.weight, -clean)


def test_a_buffer_that_two_parts_share_is_hit_once():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean = model[0].running_mean
    found = shapes(model, ["buffers"])
    assert sorted(found) == ["0.running_mean", "0.running_var", "1.running_var"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "parameters:layer10.wieght",
            "the pattern 'layer10.wieght' matches none of the parameters (close: layer10.weight, ",
        ),
        ("parameters:table", "the pattern 'table' matches none of the parameters; they are layer1.0.fc.weight, "),
        ("buffers:steps", "the pattern 'steps' matches none of the buffers"),
        ("buffers:*num_batches_tracked", "the pattern '*num_batches_tracked' matches none of the buffers"),
        ("bounds:layer9*", "the pattern 'layer9*' matches none of the bounds"),
        ("weights", "unknown target 'weights'; choose one of activations, bounds, buffers, parameters;"),
        ("weights:layer1.*", "unknown target 'weights'; choose one of activations, bounds, buffers, parameters;"),
        ("Parameters", "unknown target 'Parameters'; choose one of activations, bounds, buffers, parameters;"),
    ],
)
@pytest.mark.parametrize("fault", [BitFlip(rate=0.1), BitFlip(count=1), BitFlip(places=[("layer10.bias", 0, 0)])])
def test_a_target_that_means_nothing_is_refused_even_beside_one_that_does(target, message, fault):
    with pytest.raises(FaultError) as error:
        fault.draw(hardened(), targets=["parameters", target])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("make", "target", "message"),
    [
        (Net, "bounds", "the model has no bounds;\n  calibrate the hardened model, or set its bounds, "),
        (Net, "activations", "the model has no activations;\n  give fitact_fx.inject example_inputs"),
        (lambda: nn.Linear(2, 2), "buffers", "the model has no buffers;\n  choose other targets"),
        (lambda: nn.BatchNorm1d(2, affine=False), "parameters", "the model has no parameters;\n  choose other targets"),
        (lambda: fitact_fx.harden(Net().eval()), "bounds:*", "the model has no bounds;\n  calibrate the hardened"),
    ],
)
def test_a_model_without_that_kind_of_memory_is_refused(make, target, message):
    with pytest.raises(FaultError) as error:
        BitFlip(count=0).draw(make(), targets=[target])
    assert str(error.value).startswith(message)


def test_a_buffer_that_cannot_hold_the_format_is_refused_by_name():
    with pytest.raises(FaultError) as error:
        BitFlip(rate=0.1).draw(Net(), "q15.16", targets=["buffers"])
    assert str(error.value) == (
        "tensor 'table' is int8, which cannot hold q15.16 numbers; "
        "choose another format, or convert the model to float32 or float64"
    )
