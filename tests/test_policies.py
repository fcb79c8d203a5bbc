"""What happens beyond a bound, against element-by-element Python."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import policies
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import RecipeError
from fitact_fx.policies import SCALE_SHARE, Bounds, Clamp, Pass, Smooth, Zero, scale_of, slack
from fitact_fx.schemes.fitact import FitAct

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WILD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-7, -1e-7, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 3e4, -3e4]


def wild(dtype):
    """Values of every kind, the extremes of the type and the neighbours of 1 among them."""
    limits = torch.finfo(dtype)
    steps = [1 + k * limits.eps for k in (-1, 1, 4, 16, 64)]
    return torch.tensor([*WILD, limits.max, limits.min, limits.tiny, *steps], dtype=torch.float64).to(dtype)


def bounds_of(lower, upper, minimum=0.0, dtype=torch.float32):
    sides = [None if side is None else torch.tensor(side, dtype=torch.float64).to(dtype) for side in (lower, upper)]
    return Bounds(*sides, minimum, scale_of(*sides))


def expected(value, policy, lower, upper, minimum, dtype):
    """The documented rule for one value, in Python's own floats. A free side is None."""
    room = max(2.0**-10, 8 * torch.finfo(dtype).eps)
    scale = max(abs(side) for side in (lower, upper) if side is not None)
    low = max(minimum, torch.finfo(dtype).min) if lower is None else lower - (abs(lower) + scale / 4) * room
    high = torch.finfo(dtype).max if upper is None else upper + (abs(upper) + scale / 4) * room
    if math.isnan(value):
        return 0.0
    if low <= value <= high:
        return value
    if policy == Zero():
        return 0.0
    return (high if upper is None else upper) if value > high else (low if lower is None else lower)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("policy", [Zero(), Clamp()], ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    ("lower", "upper", "minimum"),
    [(None, 1.0, 0.0), (-0.5, 1.0, -math.inf), (-1.0, None, -math.inf), (None, 1.0, -math.inf), (0.5, 1.5, 0.0)],
    ids=["one-sided", "two-sided", "only lower", "only upper, free kind", "both above zero"],
)
def test_every_value_is_kept_or_replaced_as_documented(policy, lower, upper, minimum, dtype):
    values = wild(dtype)
    got = policy(values, bounds_of(lower, upper, minimum, dtype))
    wanted = [expected(value, policy, lower, upper, minimum, dtype) for value in values.tolist()]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.double().numpy(), np.array(wanted))
    assert got.isfinite().all()


@pytest.mark.parametrize("values_in", FLOATS, ids=str)
@pytest.mark.parametrize("bounds_in", FLOATS, ids=str)
@pytest.mark.parametrize("policy", [Zero(), Clamp()], ids=lambda policy: policy.name)
def test_values_of_another_type_than_the_bounds_keep_theirs_and_stay_finite(policy, bounds_in, values_in):
    largest = torch.finfo(bounds_in).max
    for lower, upper in ((None, 1.0), (-1.0, 1.0), (None, largest), (-largest, largest)):
        got = policy(wild(values_in), bounds_of(lower, upper, -math.inf, bounds_in))
        assert got.dtype == values_in
        assert got.isfinite().all(), (lower, upper)


@pytest.mark.parametrize("policy", [Zero(), Clamp()], ids=lambda policy: policy.name)
@pytest.mark.parametrize(("lower", "upper"), [(None, math.inf), (-math.inf, None), (-math.inf, math.inf)])
def test_infinite_bounds_let_everything_pass_and_make_nan_zero(policy, lower, upper):
    values = wild(torch.float32)
    got = policy(values, bounds_of(lower, upper, -math.inf))
    wanted = np.where(np.isnan(values.numpy()), np.float32(0), values.numpy())
    assert got.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("policy", [Zero(), Clamp()], ids=lambda policy: policy.name)
def test_each_neuron_follows_its_own_bound(policy):
    upper = torch.tensor([[1.0, 2.0, math.inf]])
    got = policy(torch.full((2, 3), 1.5), Bounds(None, upper, 0.0, scale_of(upper)))
    beyond = 0.0 if policy == Zero() else 1.0
    assert got.tolist() == [[beyond, 1.5, 1.5]] * 2


@pytest.mark.parametrize("policy", [Zero(), Clamp()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_bound_that_a_fault_made_nan_lets_nothing_pass_that_is_not_finite(policy, dtype):
    nan = torch.tensor([math.nan, 1.0], dtype=dtype)
    one = torch.tensor([1.0, 1.0], dtype=dtype)
    values = wild(dtype)[:, None].expand(-1, 2)
    for lower, upper, minimum in ((None, nan, 0.0), (-one, nan, -math.inf), (nan, one, -math.inf), (nan, nan, 0.0)):
        got = policy(values, Bounds(lower, upper, minimum, 1.0))
        assert got.isfinite().all(), (lower, upper)


def test_the_slack_is_what_the_design_says():
    assert [slack(dtype) for dtype in FLOATS] == [2**-10, 2**-10, 2**-7, 2**-4]
    assert SCALE_SHARE == 0.25


def test_the_scale_of_a_site_is_its_greatest_finite_bound():
    assert scale_of(torch.tensor([-3.0, math.inf, math.nan]), torch.tensor(2.0)) == 3.0
    assert scale_of(None, torch.tensor([math.inf])) == 0.0
    assert scale_of(None, torch.empty(0)) == 0.0
    assert scale_of(None, torch.empty(3, device="meta")) == 0.0


def test_a_finite_bound_never_widens_to_infinity():
    for dtype in FLOATS:
        largest = torch.finfo(dtype).max
        low, high = bounds_of(-largest, largest, -math.inf, dtype).limits(dtype)
        assert (low.item(), high.item()) == (-largest, largest)


def test_bounds_with_no_side_set_have_no_limits():
    with pytest.raises(ValueError, match="no bound is set on either side"):
        Bounds(None, None, 0.0, 0.0).limits(torch.float32)


# The smooth form.


def fitrelu(value, upper, lower, slope):
    """x * sigmoid(slope * (1 - x / upper)), and the same below with the size of `lower`."""

    def gate(distance):
        return 1 / (1 + math.exp(-distance)) if distance > -700 else 0.0

    passed = value * gate(slope * (upper - value) / abs(upper))
    return passed if lower is None else passed * gate(slope * (value - lower) / abs(lower))


@pytest.mark.parametrize("lower", [None, -0.5])
@pytest.mark.parametrize("slope", [5.0, 20.0])
def test_the_smooth_form_is_fitrelu(lower, slope):
    values = torch.linspace(-3, 6, 61, dtype=torch.float64)
    got = Smooth(slope)(values, bounds_of(lower, 2.0, dtype=torch.float64))
    np.testing.assert_allclose(got, [fitrelu(v, 2.0, lower, slope) for v in values.tolist()], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("lower", "upper"), [(None, 1.0), (-1.0, 1.0), (None, 0.0), (None, math.inf)])
def test_the_smooth_form_and_its_gradients_are_finite_for_any_value(lower, upper, dtype):
    values = wild(dtype).requires_grad_()
    sides = [
        None if side is None else torch.full_like(values.detach(), side).requires_grad_() for side in (lower, upper)
    ]
    passed = Smooth()(values, Bounds(*sides, 0.0, 1.0))
    passed.sum().backward()
    assert passed.isfinite().all()
    assert (passed[~values.isfinite()] == 0).all()
    for leaf in (values, *sides):
        assert leaf is None or leaf.grad.isfinite().all()


def test_the_gradient_of_the_smooth_form_is_right():
    values = torch.tensor([0.1, 0.9, 1.0, 1.2], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    # The slope is relative to the bound but no gradient flows through it, so it is held fixed here.
    Smooth()(values, Bounds(None, upper, 0.0, 1.0)).sum().backward()
    step = 1e-4
    for place, value in enumerate(values.tolist()):
        rise = [value / (1 + math.exp(-20 * (1.0 + sign * step - value))) for sign in (1, -1)]
        assert upper.grad[place].item() == pytest.approx((rise[0] - rise[1]) / (2 * step), rel=1e-4)


def test_pass_gives_back_the_very_same_tensor():
    values = wild(torch.float32)
    assert Pass()(values, bounds_of(None, 1.0)) is values


def test_an_unknown_policy_lists_the_valid_ones():
    valid = "average, backflip, clamp, rescale, zero"
    with pytest.raises(RecipeError, match=rf"^unknown policy 'smooth'; choose one of {valid}$"):
        policies.named("smooth")
    assert [policies.named(name) for name in ("zero", "clamp")] == [Zero(), Clamp()]


# Why the comparison has slack.


def network(widths=(16, 32, 32)):
    """Convolutions, BatchNorm with statistics of its own, and a wide Linear: sums that round."""
    torch.manual_seed(0)
    layers, width_in = [], 3
    for width in widths:
        layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        nn.init.normal_(layers[-2].running_mean, std=0.3)
        nn.init.uniform_(layers[-2].running_var, 0.5, 2.0)
        width_in = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width_in * 64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


@pytest.fixture(autouse=True)
def _one_thread():
    """On shared cores several threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images():
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def calibrated(model, batches, policy="zero"):
    hard = fitact_fx.harden(model, scheme=FitAct(policy=policy))
    fitact_fx.calibrate(hard, batches)
    return hard


def values_changed(hard, run):
    """How many values the bounds change while `run` runs."""
    count = 0

    def tally(module, args, output):
        nonlocal count
        count += int((args[0] != output).sum())

    handles = [bounded.register_forward_hook(tally) for bounded in bounded_sites(hard).values()]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return count


def other_ways_to_run(hard, batch):
    """The same clean data in other batch sizes and another memory order: other kernels, other rounding."""
    for size in (1, 7):
        for part in batch.split(size):
            hard(part)
    hard(batch.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_with_slack_calibration_data_passes_unchanged_however_it_is_run(policy):
    hard, batch = calibrated(network(), [images()], policy), images()
    assert values_changed(hard, lambda: hard(batch)) == 0
    assert values_changed(hard, lambda: other_ways_to_run(hard, batch)) == 0


def test_without_slack_other_batch_sizes_lose_hundreds_of_clean_values(monkeypatch):
    hard, batch = calibrated(network(), [images()]), images()
    monkeypatch.setattr(policies.limits, "slack", lambda dtype: 0.0)
    assert values_changed(hard, lambda: hard(batch)) == 0
    assert values_changed(hard, lambda: other_ways_to_run(hard, batch)) > 100


def test_with_slack_compiled_code_agrees_with_the_unhardened_model():
    model, batch = network(widths=(16,)), images()
    hard = calibrated(model, [batch])
    torch.compiler.reset()
    with torch.no_grad():
        got, clean = torch.compile(hard, fullgraph=True)(batch), model(batch)
    torch.testing.assert_close(got, clean)


def test_without_slack_compiled_code_is_wrong(monkeypatch):
    model, batch = network(widths=(16,)), images()
    hard = calibrated(model, [batch])
    monkeypatch.setattr(policies.limits, "slack", lambda dtype: 0.0)
    torch.compiler.reset()
    with torch.no_grad():
        got, clean = torch.compile(hard, fullgraph=True)(batch), model(batch)
    assert (got - clean).abs().max() > 0.01 * clean.abs().max()


class SmallAmongLarge(nn.Module):
    """Neurons whose large terms cancel: each peaks at about 1e-6 beside others that peak at 1 and more."""

    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(inputs.shape[1], 128)
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.linear.bias[:64] = 1e-6 - (inputs.double() @ self.linear.weight[:64].double().T).float()[0]

    def forward(self, x):
        return self.relu(self.linear(x))


def test_a_share_of_the_sites_scale_keeps_small_neurons_that_large_sums_round_off(monkeypatch):
    torch.manual_seed(0)
    sample = torch.randn(1, 512)
    hard = calibrated(SmallAmongLarge(sample), [sample])

    def in_a_larger_batch():
        hard(sample.repeat(32, 1))

    assert values_changed(hard, in_a_larger_batch) == 0
    monkeypatch.setattr(policies.limits, "SCALE_SHARE", 0.0)
    assert values_changed(hard, lambda: hard(sample)) == 0
    assert values_changed(hard, in_a_larger_batch) > 100
