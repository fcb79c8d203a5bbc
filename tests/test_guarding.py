"""The guard over parameters: clean values pass bit for bit, what is outside its range counts as 0."""

import math
import warnings

import numpy as np
import pytest
import torch
from guarded_networks import Net, Sequences, inputs, net, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fitact_fx
from fitact_fx.ambience import slow_path
from fitact_fx.errors import FitactError, RecipeError, SiteError, UnprotectedWarning
from fitact_fx.guarded import guard_bytes, limits_of
from fitact_fx.parameter_limits import Limits
from fitact_fx.passes.guarding import Guard
from fitact_fx.testing import architectures


@pytest.mark.parametrize("limits", ["channel", "tensor"])
@pytest.mark.parametrize("kind", [Net, Sequences])
@pytest.mark.parametrize("frontend", ["symbolic", "export"])
def test_clean_outputs_and_names_are_the_models_own(kind, limits, frontend):
    model, x = net(kind), inputs(kind)
    guarded = fitact_fx.guard(model, limits, (x,), frontend)
    assert torch.equal(run(guarded, x), run(model, x))
    assert dict(guarded.named_parameters(remove_duplicate=False)) == dict(
        model.named_parameters(remove_duplicate=False)
    )
    with torch.inference_mode(), slow_path():
        assert torch.equal(guarded(x), model(x))


@pytest.mark.parametrize("kind", [Net, Sequences])
def test_clean_outputs_and_gradients_are_the_models_own_where_copies_stand_in_for_all_parameters(kind, monkeypatch):
    """As on a GPU, which would have to be waited for if its parameters were asked."""
    monkeypatch.setattr(Limits, "hold", lambda *_: False)
    model, x = net(kind), inputs(kind)
    guarded = fitact_fx.guard(model)
    for _ in range(2):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode(), slow_path():
                assert torch.equal(guarded(x), model(x))
        found = [torch.autograd.grad(each(x).square().sum(), list(each.parameters())) for each in (guarded, model)]
        assert equal(*found)
    assert dict(guarded.named_parameters()) == dict(model.named_parameters())


@pytest.mark.parametrize("kind", [Net, Sequences])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30])
def test_a_wrong_element_anywhere_counts_as_zero(kind, wrong):
    model, x = net(kind), inputs(kind)
    guarded = fitact_fx.guard(model)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().view(-1)
        place = len(flat) // 2
        before = flat[place].item()
        flat[place] = wrong
        found = run(guarded, x)
        flat[place] = 0.0
        assert torch.equal(found, run(model, x)), name
        flat[place] = before


def oracle(values, low, high):
    """Everything outside [low, high] and every NaN is 0; all other bits stay."""
    return np.where((values >= low) & (values <= high), values, np.zeros_like(values))


@pytest.mark.parametrize(("dim", "axes"), [(0, (1, 2)), (1, (0, 2)), (None, (0, 1, 2))])
def test_limits_are_the_extremes_that_numpy_finds_and_nothing_inside_changes_a_bit(dim, axes):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    values[0, 0, :2] = -0.0, 0.0
    limits = Limits.of("w", torch.from_numpy(values), dim)
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    assert all(
        np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(limits.low_and_high(), (low, high), strict=True)
    )
    faulty = values * np.random.default_rng(1).choice([1, 1, 1, -1.5, np.nan, np.inf, 1e30], values.shape).astype(
        np.float32
    )
    for each in (values, faulty):
        ours = limits(torch.from_numpy(each)).numpy()
        assert np.array_equal(ours.view(np.int32), oracle(each, low, high).view(np.int32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_corrupted_copy_of_the_limits_changes_nothing(dtype):
    torch.manual_seed(0)
    weight = torch.randn(8, 5).to(dtype)
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for name in ("copy0", "copy1", "copy2"):
        limits = Limits.of("w", weight, 0)
        before = limits.voted().clone()
        stored = getattr(limits, name).view(words)
        stored.copy_(torch.randint(torch.iinfo(words).min, torch.iinfo(words).max, stored.shape, dtype=words))
        assert torch.equal(limits.voted().view(words), before.view(words))
        assert torch.equal(limits(weight), weight)
        assert limits(torch.full_like(weight, math.nan)).count_nonzero() == 0


def test_ranges_are_per_output_channel_and_one_per_vector():
    limits = limits_of(fitact_fx.guard(net()))
    found = {name: (each.dim, each.copy0.shape[1]) for name, (each,) in limits.items()}
    assert found["conv.weight"] == (0, 8)
    assert found["back.weight"] == (1, 6)
    assert found["norm.weight"] == found["act.weight"] == (None, 1)
    assert len({name for name in found if name in ("one.weight", "two.weight")}) == 1  # tied: checked once
    whole = fitact_fx.guard(net(), "tensor")
    assert all(each.copy0.shape == (2, 1) for (each,) in limits_of(whole).values())
    assert guard_bytes(whole) == 4 * 3 * 2 * len(limits)


def test_what_cannot_be_guarded_is_named():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 3)).eval()
    with pytest.warns(UnprotectedWarning, match="0.weight: .*max_norm writes to it"):
        guarded = fitact_fx.guard(model)
    assert set(limits_of(guarded)) == {"1.weight", "1.bias"}


class OwnCall(nn.Module):
    """A module that is called in a way of its own, with code that no graph can hold."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def __call__(self, x):
        return super().__call__(x)

    def forward(self, x):
        return self.linear(x) * self.scale if x.sum() > -100 else x


def test_a_module_with_a_call_of_its_own_runs_without_a_check_and_is_named():
    model, x = nn.Sequential(OwnCall(), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.ones(2, 4)
    with pytest.warns(UnprotectedWarning, match="0.scale: OwnCall has a __call__ of its own"):
        guarded = fitact_fx.guard(model, frontend="partial")
    assert torch.equal(run(guarded, x), run(model, x))
    assert {"2.weight", "2.bias"} <= set(limits_of(guarded))
    assert "0.scale" not in limits_of(guarded)


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.unread = nn.Linear(2, 2), nn.Parameter(torch.full((2,), math.nan))
        self.empty = nn.Parameter(torch.empty(2, device="meta"))

    def forward(self, x):
        return self.linear(x)


def test_a_parameter_that_no_graph_reads_may_hold_anything():
    assert set(limits_of(fitact_fx.guard(Unread()))) == {"linear.weight", "linear.bias"}


def broken():
    model = net()
    model.one.bias.data[3] = math.nan
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fitact_fx.guard(broken()), SiteError, r"parameter one.bias holds nan at \[3\];\n  load clean weights"),
        (lambda: fitact_fx.harden(broken(), guard=Guard()), SiteError, "parameter one.bias holds nan"),
        (lambda: fitact_fx.guard(fitact_fx.guard(net())), SiteError, "guarded already"),
        (lambda: fitact_fx.harden(fitact_fx.guard(net())), SiteError, "guarded already"),
        (lambda: fitact_fx.guard(nn.ReLU()), SiteError, "no parameter to guard"),
        (lambda: fitact_fx.guard(net(), "neuron"), RecipeError, "unknown limits 'neuron'"),
        (lambda: fitact_fx.harden(net(), guard="weights"), RecipeError, "guard is 'weights'"),
        (lambda: fitact_fx.guard(nn.Linear(2, 2, device="meta")), SiteError, "is on the meta device"),
        (lambda: fitact_fx.guard(nn.LazyLinear(2)), FitactError, "has no shape yet"),
    ],
)
def test_what_has_no_clean_range_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(architectures(max_steps=10), st.sampled_from(("channel", "tensor")), st.sampled_from((math.nan, 1e30)))
def test_on_any_architecture_a_guard_changes_no_clean_bit_and_takes_wrong_elements_for_zero(
    architecture, limits, wrong
):
    model, given_ = architecture.module().eval(), architecture.inputs()
    if not any(True for _ in model.parameters()):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnprotectedWarning)
            guarded = fitact_fx.guard(model, limits)
    except SiteError as error:
        assert "no parameter to guard" in str(error)  # noqa: PT017
        return
    assert same(model, guarded, given_)
    for name in limits_of(guarded):
        flat = model.get_parameter(name).data.view(-1)
        before = flat[-1].item()
        flat[-1] = wrong if flat.dtype != torch.float16 else math.inf
        found = outputs(guarded, given_)
        flat[-1] = 0
        assert equal(found, outputs(model, given_)), name
        flat[-1] = before


def outputs(model, given_):
    own = [each.clone(memory_format=torch.preserve_format) for each in given_]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = run(model, *own)
    values = found.values() if isinstance(found, dict) else found if isinstance(found, tuple | list) else [found]
    return [each.nan_to_num() for each in (*values, *own)]


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def same(model, guarded, given_):
    return equal(outputs(guarded, given_), outputs(model, given_))
