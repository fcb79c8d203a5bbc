"""Lowered graphs hold plain operators only and do what the hardened model does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import SiteError, TracingError
from fitact_fx.schemes.fitact import FitAct

SPELLINGS = "relu relu6 gelu silu hardswish sigmoid tanh leaky_relu elu softplus".split()


class Net(nn.Module):
    """Convolution, BatchNorm and two functional activations; a flag that tracing fixes to its default."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x, scale=1.0, mask=None):
        x = self.relu(self.norm(self.conv(x)))
        x = F.dropout(x, 0.5, training=self.training)
        x = F.gelu(self.head(F.relu(x.mean((2, 3)) - 0.1)))
        return x * scale if mask is None else x * mask


def net():
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.norm.running_mean, std=0.2)
    return model.eval()


def images(count=6, scale=1.0):
    return scale * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def calibrated(model=None, granularity=None, data=None, **scheme):
    hard = fitact_fx.harden(model or net(), granularity, scheme=FitAct(**scheme))
    fitact_fx.calibrate(hard, [images()] if data is None else [data])
    return hard


def lowered(hard, *example, backend="eager"):
    torch.compiler.reset()
    return fitact_fx.lower(hard, example or (images(),), backend=backend)


def graph_of(fast):
    return fast._orig_mod.graph


def names_called(fast):
    return [getattr(node.target, "__name__", str(node.target)) for node in graph_of(fast).nodes]


def wild_images():
    batch = images(scale=100.0)
    batch[0, 0, 0, 0], batch[1, 1, 3, 3], batch[2, 2, 5, 5] = math.nan, math.inf, -math.inf
    return batch


pytestmark = pytest.mark.usefixtures("no_gradients")


# The same, to the last bit.


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_the_lowered_graph_is_bitwise_the_hardened_model(granularity, policy):
    hard = calibrated(granularity=granularity, policy=policy)
    fast = lowered(hard)
    for batch in (images(), images(1), images(scale=30.0), wild_images()):
        assert torch.equal(fast(batch), hard(batch))
    assert fast(wild_images()).isfinite().all()


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_every_kind_of_activation_is_lowered_bit_for_bit(kind, policy):
    class Alone(nn.Module):
        def forward(self, x):
            return getattr(F, kind)(x)

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    hard = calibrated(Alone(), data=x, policy=policy)
    wild = torch.tensor([[math.nan, math.inf, -math.inf, 40.0, -40.0, -0.0]])
    fast = lowered(hard, x)
    for values in (x, wild, 3 * x):
        assert torch.equal(fast(values), hard(values))


@pytest.mark.parametrize(
    "sides", [(None, math.inf), (-math.inf, math.inf), (None, torch.tensor([[1.0, math.inf] * 3]))]
)
def test_infinite_bounds_are_lowered_bit_for_bit(sides):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for model in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())):
        hard = calibrated(model, data=x)
        fitact_fx.set_bounds(hard, {"*": sides})
        fast = lowered(hard, x)
        for values in (3 * x, torch.tensor([[math.nan, math.inf, -math.inf, 40.0, -40.0, 0.0]])):
            assert torch.equal(fast(values), hard(values))


def test_a_model_in_training_mode_is_lowered_for_evaluation():
    hard = calibrated(net().train())
    fast = lowered(hard)
    assert hard.training
    assert torch.equal(fast(images()), hard.eval()(images()))


def test_under_autocast_the_slack_is_that_of_the_values_type():
    with torch.autocast("cpu", torch.bfloat16):
        hard = calibrated()
        fast = lowered(hard)
        for batch in (images(), images(1), images(scale=1.05), wild_images()):
            assert torch.equal(fast(batch), hard(batch))


# Plain operators.


def test_nothing_of_this_library_is_left():
    for policy in ("zero", "clamp"):
        plain = lowered(calibrated(policy=policy))._orig_mod
        assert type(plain).__mro__[1] is GraphModule
        classes = [type(module).__module__ for module in plain.modules() if module is not plain]
        functions = [getattr(node.target, "__module__", None) or "" for node in plain.graph.nodes]
        assert classes
        assert not [name for name in (*classes, *functions) if name.startswith("fitact_fx")]
        assert not any("fitact" in line for line in plain.code.splitlines())
        plain.graph.lint()


def test_a_relu_in_front_of_a_zeroing_bound_disappears_into_it():
    fast = lowered(calibrated())
    assert "relu" not in names_called(fast)
    assert not any(isinstance(module, nn.ReLU) for module in fast._orig_mod.modules())
    assert names_called(fast).count("where") == 3


def _double(module, args):
    return (args[0] * 2,)


def _halve(module, args, output):
    return output / 2


class TwoReaders(nn.Module):
    """The un-bounded ReLU's own value is never read by anyone else, but its input is."""

    def forward(self, x):
        return torch.relu(x) + x


class ZerosFirst(nn.Module):
    """A ReLU whose first operand is not its input."""

    def forward(self, x):
        return torch.maximum(torch.zeros_like(x), x)


class Broadcasting(nn.Module):
    """A ReLU that gives more than its input holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("zeros", torch.zeros(4, 1))

    def forward(self, x):
        return torch.maximum(x[:1], self.zeros)


class Subclass(nn.ReLU):
    """A ReLU that is none."""

    def forward(self, x):
        return super().forward(x) - 0.5


def with_hook(kind, hook):
    model = nn.Sequential(nn.ReLU())
    getattr(model[0], f"register_forward_{kind}")(hook)
    return model


@pytest.mark.parametrize(
    "model",
    [
        TwoReaders(),
        ZerosFirst(),
        Broadcasting(),
        nn.Sequential(Subclass()),
        with_hook("pre_hook", _double),
        with_hook("hook", _halve),
    ],
    ids=["two readers", "zeros first", "broadcast", "subclass", "pre-hook", "hook"],
)
def test_what_only_looks_like_a_plain_relu_keeps_its_meaning(model):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    hard = calibrated(model, data=x)
    assert torch.equal(hard(x), model(x))
    fast = lowered(hard, x)
    for values in (x, 5 * x):
        assert torch.equal(fast(values), hard(values))


def test_a_hook_added_after_hardening_is_honoured():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    hard = calibrated(nn.Sequential(nn.ReLU()), data=x)
    hard.get_submodule("0").register_forward_pre_hook(_double)
    assert torch.equal(lowered(hard, x)(x / 2), hard(x / 2))


def test_lowering_leaves_the_hardened_model_as_it_was_and_shares_its_parameters():
    hard = calibrated()
    code, state = hard.code, {name: tensor.clone() for name, tensor in hard.state_dict().items()}
    fast = lowered(hard)
    assert hard.code == code
    assert list(bounded_sites(hard)) == ["relu", "relu_1", "gelu"]
    assert all(torch.equal(state[name], tensor) for name, tensor in hard.state_dict().items())
    assert not any(bounded._forward_hooks for bounded in bounded_sites(hard).values())
    assert all(fast._orig_mod.get_parameter(name) is own for name, own in hard.named_parameters())


class Counting(nn.Module):
    """Counts its calls in two ways, and draws."""

    def __init__(self):
        super().__init__()
        for name in ("written", "hidden"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, x):
        self.written.add_(1)
        self.hidden.data.add_(1)
        return torch.relu(x + torch.rand_like(x)) + self.written + self.hidden


def test_what_a_model_counts_and_draws_is_not_touched_by_lowering():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    hard = calibrated(Counting(), data=x)
    state = torch.get_rng_state()
    torch.compiler.reset()
    fast = lowered(hard, x)
    assert torch.equal(torch.get_rng_state(), state)
    for _ in range(2):
        torch.manual_seed(3)
        expected = hard(x)
        torch.manual_seed(3)
        assert torch.equal(fast(x), expected)


# Refused, or still checked.


def test_unset_bounds_are_not_lowered():
    with pytest.raises(SiteError) as raised:
        fitact_fx.lower(fitact_fx.harden(net()), (images(),), backend="eager")
    assert str(raised.value).startswith("site relu (test_lowering.py:")
    assert "in forward: x = self.relu(self.norm(self.conv(x))))\n  its bounds are not set;\n" in str(raised.value)
    assert str(raised.value).endswith("run fitact_fx.calibrate or set_bounds before lowering")


def test_a_model_that_is_not_hardened_is_not_lowered():
    with pytest.raises(SiteError, match=r"is not a hardened model;\n  lower what fitact_fx\.harden returned"):
        fitact_fx.lower(fitact_fx.trace(net()), (images(),), backend="eager")


def test_unset_bounds_are_not_exported_and_set_ones_are():
    with pytest.raises(
        SiteError, match=r"its bounds are not set;\n  run fitact_fx\.calibrate or set_bounds before export"
    ):
        torch.export.export(fitact_fx.harden(net()), (images(),))
    hard = calibrated()
    assert torch.equal(torch.export.export(hard, (images(),)).module()(images()), hard(images()))


@pytest.mark.parametrize("given", [{"scale": 2.0}, {"mask": torch.ones(5)}])
def test_an_argument_that_was_fixed_to_its_default_is_still_checked(given):
    hard = calibrated()
    fast = lowered(hard)
    (name,) = given
    with pytest.raises(TracingError, match=f"argument '{name}' was fixed to its default"):
        hard(images(), **given)
    with pytest.raises(Exception, match=f"argument '{name}' was fixed to its default"):
        fast(images(), **given)
    assert torch.equal(fast(images(), scale=1.0, mask=None), hard(images()))


def test_example_inputs_of_another_size_than_the_bounds_are_refused():
    with pytest.raises(SiteError, match=r"calibrated for \(8, 6, 6\) and it now gets \(8, 8, 8\)"):
        fitact_fx.lower(calibrated(), (torch.ones(1, 3, 10, 10),), backend="eager")


def test_activations_of_size_one_are_not_silently_spread_over_the_bounds():
    model = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(1))
    hard = calibrated(model, data=torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    fast = lowered(hard, torch.ones(2, 3, 4, 4))
    with pytest.raises(Exception, match=r"site 0 .* gets activations of another shape than its bounds are for"):
        fast(torch.ones(2, 3, 1, 1))


# Compiled.


class FunctionalReLU(nn.Module):
    """Activations as functions and methods only, a residual sum and in-place spellings among them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.a(x), inplace=True)
        x = (x + self.b(x)).relu_()
        return self.head(x.mean((2, 3))).clamp(min=0)


def functional():
    torch.manual_seed(0)
    return FunctionalReLU().eval()


def test_lowered_with_inductor_it_agrees_with_the_compiled_original():
    model, batch = net(), images()
    hard = calibrated(model)
    torch.compiler.reset()
    original = torch.compile(model, fullgraph=True)(batch)
    fast = lowered(hard, backend="inductor")
    torch.testing.assert_close(fast(batch), original)
    assert fast(wild_images()).isfinite().all()


def test_a_functional_network_compiles_with_inductor_without_being_lowered():
    model, batch = functional(), images()
    hard = calibrated(model)
    assert list(bounded_sites(hard)) == ["relu", "relu_1", "clamp"]
    torch.compiler.reset()
    got = torch.compile(hard, fullgraph=True)(batch)
    torch.testing.assert_close(got, model(batch))


@pytest.mark.parametrize(("granularity", "policy"), [("neuron", "zero"), ("channel", "clamp"), ("layer", "zero")])
def test_a_hardened_model_compiles_in_one_graph_at_every_granularity(granularity, policy):
    hard = calibrated(granularity=granularity, policy=policy)
    torch.compiler.reset()
    compiled = torch.compile(hard, fullgraph=True, backend="aot_eager")
    for batch in (images(), images(scale=30.0), wild_images()):
        torch.testing.assert_close(compiled(batch), hard(batch))


def test_an_uncalibrated_model_compiles_in_one_graph_and_is_the_original():
    torch.compiler.reset()
    compiled = torch.compile(fitact_fx.harden(net()), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images()), net()(images()))


def test_new_bounds_reach_a_compiled_model():
    hard = calibrated()
    torch.compiler.reset()
    compiled = torch.compile(hard, fullgraph=True, backend="aot_eager")
    for top in (math.inf, 0.5, 0.25):
        fitact_fx.set_bounds(hard, {"relu": (None, top)})
        assert torch.equal(compiled(images()), hard(images()))
    fitact_fx.calibrate(hard, [images(scale=0.1)])
    assert torch.equal(compiled(images()), hard(images()))


def test_a_lowered_model_takes_batches_of_any_size():
    hard = calibrated()
    fast = lowered(hard, backend="aot_eager")
    for count in (1, 2, 3, 5):
        torch.testing.assert_close(fast(images(count)), hard(images(count)))


def test_gradients_flow_through_a_lowered_model():
    hard = calibrated()
    fast = lowered(hard, backend="aot_eager")
    with torch.enable_grad():
        mine, theirs = images().requires_grad_(), images().requires_grad_()
        fast(mine).sum().backward()
        hard(theirs).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


class WritesThroughAView(nn.Module):
    """The in-place call's own result is thrown away; the tensor it writes into is read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        h = self.linear(x)
        F.relu_(h[:, :4])
        top = h[:, 4:]
        top += 1.0
        return h


def test_writes_whose_own_result_nobody_reads_are_kept():
    model, x = WritesThroughAView().eval(), torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, [x])
    with torch.no_grad():
        assert torch.equal(hard(x), model(x))
        assert torch.equal(fitact_fx.lower(hard, (x,), backend="eager")(x), model(x))


class ClampsAnIndex(nn.Module):
    """`clamp(min=0)` on whole numbers looks like a ReLU and is none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, index):
        return torch.relu(self.embedding(index.clamp(min=0)))


@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_whole_numbers_pass_a_site_as_they_are(policy):
    model, index = ClampsAnIndex().eval(), torch.tensor([[3, -2, 9]])
    hard = fitact_fx.harden(model, scheme=FitAct("layer", policy))
    fitact_fx.calibrate(hard, [index])
    with torch.no_grad():
        assert torch.equal(hard(index), model(index))
        assert torch.equal(fitact_fx.lower(hard, (index,), backend="eager")(index), model(index))


def test_example_inputs_are_not_overwritten():
    class OverwritesItsInput(nn.Module):
        def forward(self, x):
            return x.relu_() + 1

    hard = fitact_fx.harden(OverwritesItsInput())
    x = torch.tensor([[-1.0, 2.0]])
    fitact_fx.calibrate(hard, [x])
    fitact_fx.lower(hard, (x,), backend="eager")
    assert x.tolist() == [[-1.0, 2.0]]


def test_a_plain_model_is_refused_and_a_tensor_is_one_input():
    with pytest.raises(SiteError, match="this Sequential is not a hardened model"):
        fitact_fx.lower(nn.Sequential(nn.ReLU()), (torch.ones(1),))
    hard = calibrated()
    assert torch.equal(fitact_fx.lower(hard, images(), backend="eager")(images()), hard(images()))
