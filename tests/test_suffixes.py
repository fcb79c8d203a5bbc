"""Running again only what depends on a fault: the outputs are those of the whole model, bit for bit, or a refusal."""

import copy
import operator
import random
import struct
import warnings
from contextlib import contextmanager

import pytest
import torch
from conftest import needs_torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import module
from torch import nn

import fitact_fx
from fitact_fx.ambience import RandomStates, random_states_kept, slow_path
from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix.steps import Steps
from fitact_fx.campaigns.suffix.suffixes import UNCHANGED, Suffixes
from fitact_fx.campaigns.suffix.values import same_bits
from fitact_fx.errors import CampaignError, UncalibratedWarning
from fitact_fx.faults import BitFlip, Memory
from fitact_fx.passes import apply
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.testing import architectures

PLENTY = 1 << 30
PROFILE = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)


def prepared(model, example_inputs=None):
    graph_module = fitact_fx.trace(model.eval(), example_inputs)
    apply(graph_module, Functionalise())
    return graph_module


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(*inputs, **named):
    return Batch(inputs, named, None)


def evenly(model):
    return dict.fromkeys(Memory.of(model).names, 1.0)


def suffixes(model, batches, memory=PLENTY, **options):
    return Suffixes.of(model, batches, memory, evenly(model), **options)


def words(output):
    """Every tensor of an output as its bytes, and how they are packed."""
    if isinstance(output, torch.Tensor):
        raw = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[output.element_size()]
        return output.dtype, tuple(output.shape), output.detach().contiguous().view(raw).tolist()
    if isinstance(output, dict):
        return type(output), [(key, words(value)) for key, value in output.items()]
    return type(output), [words(value) for value in output] if isinstance(output, tuple | list) else output


def whole(model, one):
    with torch.inference_mode():
        return words(one.run(model))


@contextmanager
def written(model, name, change):
    """Inside, the first element of a tensor is `change` of what it was."""
    tensor = Memory.of(model).names[name].tensor
    before = tensor.detach().clone()
    try:
        with torch.no_grad():
            tensor.view(-1)[0] = change(tensor.view(-1)[0].clone())
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(before)


def assert_like_the_whole(model, found, batches, names):
    """With a fault in each of these tensors, and in all of them."""
    clean = [whole(model, one) for one in batches]
    for hit in [*([name] for name in names), list(names)]:
        faults = BitFlip(count=2 * len(hit)).draw(model, targets=[f"parameters:{name}" for name in hit])
        with faults.applied(model):
            for number, one in enumerate(batches):
                output, expected = found.outputs(number, hit), whole(model, one)
                assert (clean[number] if output is UNCHANGED else words(output)) == expected
    for number, _ in enumerate(batches):
        assert found.outputs(number, []) is UNCHANGED


class Calls:
    """Counts the calls of a model's modules that have no children."""

    def __init__(self, model):
        self.count = 0
        self.hooks = [each.register_forward_hook(self._count) for each in model.modules() if not list(each.children())]

    def _count(self, *_):
        self.count += 1

    def of(self, run):
        before = self.count
        run()
        return self.count - before


def deep(layers=6):
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 3))


class Block(nn.Module):
    """A residual block that adds in place, as torchvision's do."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


def residual():
    torch.manual_seed(0)
    return nn.Sequential(Block(3), Block(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def images(count=4, seed=0):
    return batch(randn(count, 3, 6, 6, seed=seed))


@PROFILE
@given(architectures(max_steps=10), st.sampled_from((0, 300, 3000, PLENTY)), st.booleans())
def test_any_architecture_gives_the_outputs_of_the_whole_model_or_is_refused(architecture, memory, early):
    with random_states_kept(), slow_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        model = prepared(architecture.module())
        batches = [batch(*architecture.inputs(size, seed=size)) for size in (2, 3)]
        if not list(model.parameters()):
            return
        before = copy.deepcopy(batches)
        try:
            found = suffixes(model, batches, memory, early=early)
        except CampaignError as error:
            assert "suffixes=False" in str(error)  # noqa: PT017
            return
        assert found.kept_bytes <= memory
        memory_of = Memory.of(model)
        names = [cell.name for cell in memory_of.cells if cell.kind == "parameters"]
        fitting = [
            name for name in names if memory_of.names[name].misfit(fitact_fx.faults.find_format("q15.16")) is None
        ]
        if fitting:
            assert_like_the_whole(model, found, batches, fitting[:4])
        for one, other in zip(batches, before, strict=True):
            assert words(list(one.args)) == words(list(other.args))


def test_residual_blocks_that_add_in_place_run_in_part_within_any_budget():
    model = prepared(residual())
    for memory in (0, 500, 2000, PLENTY):
        found = suffixes(model, [images(), images(2, seed=1)], memory)
        assert found.kept_bytes <= memory
        names = [cell.name for cell in Memory.of(model).cells if cell.kind == "parameters"]
        assert_like_the_whole(model, found, [images(), images(2, seed=1)], names)


@pytest.mark.parametrize("granularity", ["neuron", "layer"])
def test_a_hardened_model_with_its_bounds_hit(granularity):
    hard = fitact_fx.harden(residual().eval(), granularity=granularity)
    fitact_fx.calibrate(hard, [images().args[0]])
    found = suffixes(hard, [images()])
    for name, cell in Memory.of(hard).names.items():
        if cell.kind == "bounds":
            with written(hard, name, lambda bound: bound * 0.1):
                assert words(found.outputs(0, [name])) == whole(hard, images())


@pytest.mark.parametrize("permanent", [False, True])
def test_faults_in_injection_nodes(permanent):
    fault = BitFlip(count=2)
    model = fitact_fx.inject(
        residual().eval(), "*", fault, "before", permanent=permanent, example_inputs=images().args, capacity=8
    )
    names = [name for name, cell in Memory.of(model).names.items() if cell.kind == "activations"]
    for name in names:  # `inject` leaves the faults of a trial in
        Memory.of(model).names[name].node.load(torch.zeros(6, 0, dtype=torch.int64))
    batches = [images(), images(2, seed=1)]
    found, clean = suffixes(model, batches), [whole(model, one) for one in batches]
    changed = 0
    for name in names:
        with fault.draw(model, targets=[f"activations:{name}"]).applied(model):
            for number, one in enumerate(batches):
                output = found.outputs(number, [name])
                changed += output is not UNCHANGED
                assert (clean[number] if output is UNCHANGED else words(output)) == whole(model, one)
    assert changed


def forward_tied(self, x):
    return self.last(torch.relu(self.first(torch.relu(self.other(torch.relu(self.first(x)))))))


def test_a_tied_weight_touches_every_place_that_reads_it():
    torch.manual_seed(0)
    model = module(forward_tied, first=nn.Linear(6, 6), other=nn.Linear(6, 6), last=nn.Linear(6, 6))
    model.last.weight = model.first.weight
    model, one = prepared(model), batch(randn(5, 6))
    found = suffixes(model, [one])
    for name in ("first.weight", "last.weight"):
        with written(model, name, lambda value: value + 1):
            assert words(found.outputs(0, [name])) == whole(model, one)


def forward_parts(self, x):
    left, right = self.first(x).chunk(2, 1)
    values, places = right.max(1)
    return {
        "sum": self.second(left) + self.scale * values[:, None],
        "places": places,
        "third": (x.size(0), left[:, 1:]),
    }


def several_parts():
    torch.manual_seed(0)
    scale = nn.Parameter(randn(3))
    return prepared(module(forward_parts, first=nn.Linear(4, 6), second=nn.Linear(3, 3), scale=scale))


@pytest.mark.parametrize("memory", [0, 30, 60, PLENTY])
def test_nodes_of_several_values_and_functional_parameters(memory):
    model, one = several_parts(), batch(randn(5, 4))
    assert_like_the_whole(model, suffixes(model, [one], memory), [one], ["first.weight", "second.bias", "scale"])


def test_parameters_that_are_views_of_one_flat_buffer_are_told_apart():
    model = deep()
    flat = torch.cat([each.detach().flatten() for each in model.parameters()])
    offset = 0
    for each in model.parameters():
        each.data = flat[offset : offset + each.numel()].view(each.shape)
        offset += each.numel()
    found = suffixes(prepared(model), [batch(randn(4, 8))])
    assert found.seconds(["12.weight"]) < found.seconds(["0.weight"])


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, shift=None, factor=2.0):
        return self.layer(x) * factor + (0.0 if shift is None else shift)


def test_arguments_are_bound_by_place_by_name_and_by_default():
    model = prepared(Defaults())
    for one in (batch(randn(3, 4)), batch(x=randn(3, 4)), batch(randn(3, 4), factor=2.0)):
        found = suffixes(model, [one])
        with written(model, "layer.bias", lambda value: value + 1):
            assert words(found.outputs(0, ["layer.bias"])) == whole(model, one)


def test_arguments_with_stars_are_bound():
    graph = torch.fx.Graph()
    x, more, named = (graph.placeholder(name) for name in ("x", "*more", "**named"))
    layer = graph.call_module("layer", (x,))
    first, factor = (
        graph.call_function(operator.getitem, (more, 0)),
        graph.call_function(operator.getitem, (named, "f")),
    )
    graph.output(graph.call_function(torch.add, (layer, graph.call_function(torch.mul, (first, factor)))))
    model = torch.fx.GraphModule(Defaults().eval(), graph)
    one = batch(randn(3, 4), randn(3, 4, seed=1), f=randn(4, seed=2))
    found = suffixes(model, [one])
    with written(model, "layer.bias", lambda value: value + 1):
        assert words(found.outputs(0, ["layer.bias"])) == whole(model, one)


def test_a_batch_that_the_model_does_not_take_is_refused():
    for one in (batch(), batch(randn(3, 4), other=1)):
        with pytest.raises(CampaignError, match=r"the model cannot be called with such a batch"):
            Steps.of(prepared(deep())).bound(one)


def test_an_exported_model_runs_in_part_too():
    model = fitact_fx.trace(deep().eval(), (randn(4, 8),), frontend="export")
    one = batch(randn(4, 8))
    found = suffixes(model, [one])
    name = next(name for name in Memory.of(model).names if name.startswith("12"))
    with written(model, name, lambda value: value + 1):
        assert words(found.outputs(0, [name])) == whole(model, one)


def test_inputs_in_an_unusual_layout_are_run_like_copies_of_them():
    model = prepared(deep())
    one = batch(randn(9, 16)[1:, 3:11])
    found = suffixes(model, [one])
    with written(model, "0.weight", lambda value: value + 1):
        assert words(found.outputs(0, ["0.weight"])) == whole(model, one)


def test_a_fault_deep_in_the_network_runs_fewer_modules():
    model = prepared(deep())
    found = suffixes(model, [batch(randn(4, 8))], early=False)
    calls = Calls(model)
    ran = [calls.of(lambda name=name: found.outputs(0, [name])) for name in ("0.weight", "6.bias", "12.weight")]
    assert ran == [13, 7, 1]
    assert found.seconds(["0.weight"]) > found.seconds(["6.bias"]) > found.seconds(["12.weight"]) > 0


def test_without_memory_everything_that_leads_to_the_output_runs():
    model = prepared(deep())
    found = suffixes(model, [batch(randn(4, 8))], 0)
    assert found.kept_bytes == 0
    assert Calls(model).of(lambda: found.outputs(0, ["12.weight"])) == 13


def test_what_is_kept_stays_within_the_budget_over_all_batches():
    model = prepared(deep())
    batches = [batch(randn(size, 8)) for size in (4, 2, 1)]
    full = suffixes(model, batches).kept_bytes
    assert full == 6 * 7 * 8 * 4  # the input of each layer but the first
    for share in (0.1, 0.3, 0.5, 0.9):
        found = suffixes(model, batches, int(full * share))
        held = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for clean in found._clean
            for each in clean.values.values()
        }
        assert sum(held.values()) == found.kept_bytes <= full * share


def test_a_smaller_budget_never_changes_an_output_but_what_it_costs():
    model, one = prepared(deep()), batch(randn(4, 8))
    costs = suffixes(model, [one]).costs
    expected = []
    for memory in (PLENTY, 4 * 128, 2 * 128, 0):
        found = suffixes(model, [one], memory, costs=costs)
        assert found.costs == costs
        expected.append(sum(found.seconds([name]) for name in evenly(model)))
    assert expected == sorted(expected)
    assert expected[1] < expected[-1]


def test_a_kept_value_is_never_changed_whatever_the_caller_does_with_an_output():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.first(x)
            return hidden, hidden.flatten(), x, self.second(hidden)

    model, one = prepared(Shared()), batch(randn(3, 4))
    found = suffixes(model, [one])
    with written(model, "second.weight", lambda value: value + 1):
        for _ in range(2):
            outputs = found.outputs(0, ["second.weight"])
            assert words(outputs) == whole(model, one)
            with torch.inference_mode():
                for each in outputs:
                    each.zero_()


def dead_relu():
    """The first layer's third output is negative for each input, so that its ReLU gives zeros."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0].zero_()
        model[0].bias[0] = -100.0
    return prepared(model)


def test_a_fault_that_is_masked_on_the_way_leaves_the_output_unchanged():
    model, one = dead_relu(), batch(randn(3, 4))
    found, late = suffixes(model, [one]), suffixes(model, [one], early=False)
    with written(model, "0.bias", lambda value: value + 1):
        calls = Calls(model).of(lambda: found.outputs(0, ["0.bias"]))
        assert found.outputs(0, ["0.bias"]) is UNCHANGED
        assert calls == 2
        assert words(late.outputs(0, ["0.bias"])) == whole(model, one)
    with written(model, "2.weight", lambda value: value + 1):  # it multiplies a zero
        assert found.outputs(0, ["2.weight"]) is UNCHANGED


def test_a_negative_zero_in_the_place_of_a_zero_is_a_change():
    def forward(self, x):
        return 1 / (torch.relu(self.layer(x)) * self.sign * self.one)

    model = module(forward, layer=nn.Linear(4, 4), sign=nn.Parameter(torch.ones(4)), one=nn.Parameter(torch.ones(4)))
    with torch.no_grad():
        model.layer.bias.fill_(-100.0)
    model, one = prepared(model), batch(randn(3, 4))
    found = suffixes(model, [one])
    with written(model, "sign", lambda value: -value):
        assert words(found.outputs(0, ["sign"])) == whole(model, one)
        assert (whole(model, one)[2][0][0]) == torch.tensor(-torch.inf).view(torch.int32).item()


def test_two_faults_of_which_one_is_masked_are_a_change():
    model, one = dead_relu(), batch(randn(3, 4))
    found = suffixes(model, [one])
    hit = ["0.bias", "4.bias"]
    with written(model, "0.bias", lambda value: value + 1), written(model, "4.bias", lambda value: value + 1):
        assert words(found.outputs(0, hit)) == whole(model, one)


def test_a_fault_that_changes_nothing_leaves_the_output_unchanged():
    model = prepared(deep())
    found = suffixes(model, [batch(randn(4, 8))])
    assert found.outputs(0, ["4.weight"]) is UNCHANGED  # as if a bit were stuck at what it is


def test_a_parameter_that_nobody_reads_leaves_the_output_unchanged():
    model = deep()
    model.register_parameter("unread", nn.Parameter(torch.ones(3)))
    model = prepared(model)
    found = suffixes(model, [batch(randn(4, 8))])
    with written(model, "unread", lambda value: value + 1):
        assert found.outputs(0, ["unread"]) is UNCHANGED
        assert found.seconds(["unread"]) == 0


def test_a_check_of_values_runs_where_a_fault_reaches_it():
    def forward(self, x):
        hidden = self.first(x)
        torch._assert(hidden.isfinite().all(), "not finite")
        return x * 2

    model = prepared(module(forward, first=nn.Linear(4, 4)))
    found = suffixes(model, [batch(randn(3, 4))])
    with written(model, "first.weight", lambda value: value + 1):
        assert found.outputs(0, ["first.weight"]) is UNCHANGED
    with written(model, "first.weight", lambda value: value * torch.inf), pytest.raises(AssertionError):
        found.outputs(0, ["first.weight"])


def test_a_name_that_the_model_does_not_have_is_refused_with_close_ones():
    found = suffixes(prepared(deep()), [batch(randn(4, 8))])
    with pytest.raises(CampaignError, match=r"no tensor '12.weigth' \(close: 12.weight"):
        found.outputs(0, ["12.weigth"])


def writes_an_input_that_is_read_later(self, x):
    y = self.layer(x)
    z = y.view(-1)
    y.add_(1)
    return y.sum() + z.sum()


def writes_its_own_parameter(self, x):
    self.count.add_(1)
    return self.layer(x) + self.count


def draws(self, x):
    return self.layer(x) + torch.rand_like(x)


def drops(self, x):
    return nn.functional.dropout(self.layer(x), 0.5, True)


@pytest.mark.parametrize(
    ("forward", "problem"),
    [
        (writes_an_input_that_is_read_later, "it writes into memory that is read under another name afterwards"),
        (writes_its_own_parameter, "it writes into a tensor of the model, which the next run reads"),
        (draws, "it draws random numbers"),
        (drops, "it draws random numbers"),
    ],
)
def test_what_cannot_run_apart_is_refused(forward, problem):
    model = prepared(module(forward, layer=nn.Linear(4, 4), count=torch.zeros(4)))
    with pytest.raises(CampaignError, match=problem) as error:
        suffixes(model, [batch(randn(3, 4))])
    assert "run the whole model in each trial (suffixes=False)" in str(error.value)


def test_a_model_in_training_mode_is_refused_before_anything_of_it_changes():
    model = prepared(residual()).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CampaignError, match="is in training mode"):
        suffixes(model, [images()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_of_the_users_are_refused():
    for where in ("", "0.conv1"):
        model = prepared(residual())
        model.get_submodule(where).register_forward_hook(lambda *_: None)
        with pytest.raises(CampaignError, match="hook"):
            suffixes(model, [images()])


def test_a_weight_norm_is_no_code_of_the_users():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    model, one = prepared(model), batch(randn(3, 4))
    names = [cell.name for cell in Memory.of(model).cells if cell.kind == "parameters"]
    assert any("original" in name for name in names)
    assert_like_the_whole(model, suffixes(model, [one]), [one], names)


def test_code_that_was_not_seen_is_refused():
    class Unseen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = deep()

        def forward(self, x):
            if x.sum() > 1e9:
                raise ValueError(x)
            return self.body(x)

    with pytest.raises(CampaignError, match=r"could not be seen|may do anything"):
        suffixes(fitact_fx.trace(Unseen().eval(), frontend="partial"), [batch(randn(4, 8))])


def called_last(last):
    """A layer and behind it a module that is called as a whole, as if it were torch's."""
    type(last).__module__ = "torch.nn.last"
    graph = torch.fx.Graph()
    layer = graph.call_module("0", (graph.placeholder("x"),))
    graph.output(graph.call_function(torch.add, (graph.call_module("1", (layer,)), layer)))
    return torch.fx.GraphModule(nn.Sequential(nn.Linear(4, 4), last).eval(), graph)


class Sneaky(nn.Module):
    def forward(self, x):
        return x.add_(1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        return x * 2


class Drifting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (Sneaky, "it changes a value in place after that was made"),
        (Counting, "it changes its own tensors or its inputs whenever it runs"),
        (Drifting, "it does not give the same output twice"),
    ],
)
def test_what_a_module_does_besides_its_result_is_seen_when_it_is_tried_out(last, problem):
    with pytest.raises(CampaignError, match=problem):
        suffixes(called_last(last()), [batch(randn(3, 4))])


def test_in_place_sums_that_nobody_else_sees_run_in_part():
    def forward(self, x):
        y = self.first(x)
        y += x
        y[:, 0] = 1.0
        z = self.second(y)
        z *= y
        view = z.view(-1)
        view += 1
        return view

    torch.manual_seed(0)
    model = prepared(module(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4)))
    one = batch(randn(3, 4))
    for memory in (0, PLENTY):
        found = suffixes(model, [one], memory)
        assert_like_the_whole(model, found, [one], ["first.weight", "second.weight"])


@needs_torchvision
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_networks_of_torchvision_run_in_part(name):
    import torchvision

    torch.manual_seed(0)
    model, one = prepared(getattr(torchvision.models, name)(num_classes=5)), batch(randn(1, 3, 32, 32))
    found = suffixes(model, [one])
    names = [cell.name for cell in Memory.of(model).cells if cell.kind == "parameters"]
    for hit in names[:: len(names) // 5]:
        with written(model, hit, lambda value: value + 1):
            output = found.outputs(0, [hit])
            assert output is UNCHANGED or words(output) == whole(model, one)
    assert found.seconds(names[-1:]) < 0.2 * found.seconds(names[:1])


NAN, OTHER_NAN = (torch.tensor(word, dtype=torch.int32).view(torch.float32) for word in (0x7FC00000, 0x7FC00001))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.zeros(2), torch.zeros(2), True),
        (torch.zeros(2), -torch.zeros(2), False),
        (NAN, NAN.clone(), True),
        (NAN, OTHER_NAN, False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(2, 3), torch.zeros(3, 2).t(), False),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.complex64), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        ((1, 2.0, torch.ones(1)), (1, 2.0, torch.ones(1)), True),
        ((1, 2.0), [1, 2.0], False),
        (0.0, -0.0, False),
        (struct.unpack("<d", b"\1" + b"\0" * 5 + b"\xf8\x7f")[0], float("nan"), False),
        (1, True, False),
        ({"a": "x"}, {"a": "x"}, True),
        (object(), object(), False),
    ],
)
def test_values_are_the_same_if_all_of_their_bits_are(one, other, same):
    assert same_bits(one, other) == same


def users_function(x):
    return x + 1


def test_functions_and_modules_of_the_users_that_stay_whole_are_refused():
    graph = torch.fx.Graph()
    graph.output(graph.call_function(users_function, (graph.call_module("layer", (graph.placeholder("x"),)),)))
    with pytest.raises(CampaignError, match="users_function runs code that may do anything"):
        suffixes(torch.fx.GraphModule(Defaults().eval(), graph), [batch(randn(3, 4))])
    model = prepared(deep())
    model.get_submodule("4").add_module("inner", Defaults().eval())
    with pytest.raises(CampaignError, match="calls a Defaults that is code that may do anything"):
        suffixes(model, [batch(randn(3, 8))])


def test_another_thread_of_the_process_may_draw_now_and_then(monkeypatch):
    now, calls = RandomStates.now, []

    def disturbed():
        calls.append(1)
        if len(calls) == 2:  # as a scheduler's heartbeat draws, which is no business of the model's
            random.random()
        return now()

    model = fitact_fx.trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval())
    x = torch.randn(4, 3)
    monkeypatch.setattr(RandomStates, "now", disturbed)
    suffixes = Suffixes.of(model, [Batch((x,), {}, None)], 1 << 20, {"0.weight": 1.0})
    assert torch.equal(suffixes.outputs(0, ["0.weight"]), model(x))
    assert len(calls) == 4
