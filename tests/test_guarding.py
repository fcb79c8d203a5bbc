"""The guard over parameters: clean values pass bit for bit, what is outside its range counts as 0."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fitact_fx
from fitact_fx.ambience import slow_path
from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix import UNCHANGED, Suffixes
from fitact_fx.errors import FitactError, RecipeError, SiteError, UnprotectedWarning
from fitact_fx.faults import BitFlip
from fitact_fx.guarded import Limits, guard_bytes, limits_of
from fitact_fx.passes.guarding import Guard
from fitact_fx.places import NAMES
from fitact_fx.testing import architectures


class Net(nn.Module):
    """Convolutions of both kinds, BatchNorm, a PReLU that is called twice, a Parameter of its own, tied layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU()
        self.back = nn.ConvTranspose2d(8, 6, 3)
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.back(x) * self.scale).mean((2, 3))
        return self.two(self.one(x).relu())


class Sequences(nn.Module):
    """Layers that hold their weights in other ways."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.lstm, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.out = nn.Linear(8, 11)

    def forward(self, words):
        x = self.lstm(self.words(words) + self.places)[0]
        x = x + self.attention(x, x, x)[0]
        return self.out(self.normed(x).relu() + self.cell(x[:, 0]).unsqueeze(1))


def net(kind=Net):
    torch.manual_seed(0)
    return kind().eval()


def inputs(kind=Net):
    generator = torch.Generator().manual_seed(1)
    if kind is Net:
        return torch.randn(4, 3, 8, 8, generator=generator)
    return torch.randint(0, 11, (3, 5), generator=generator)


def run(model, *given):
    with torch.no_grad(), slow_path():
        return model(*given)


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


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), fitact_fx.trace])
def test_copies_run_on_their_own_parameters_behind_their_own_limits(how):
    model, x = net(), inputs()
    copied = how(fitact_fx.guard(model))
    assert torch.equal(run(copied, x), run(model, x))
    with torch.no_grad():
        dict(copied.named_parameters())["conv.weight"][0, 0, 0, 0] = math.nan
    found = run(copied, x)
    with torch.no_grad():
        dict(copied.named_parameters())["conv.weight"][0, 0, 0, 0] = 0.0
    assert found.isfinite().all()
    assert torch.equal(found, run(copied, x))


def test_a_cast_model_still_lets_its_clean_parameters_pass():
    model, x = net().double(), inputs().double()
    guarded = fitact_fx.guard(model).float()
    assert torch.equal(run(guarded, x.float()), run(copy.deepcopy(model).float(), x.float()))
    assert not model.training
    assert guarded.train().limits.training
    assert not any(module.training for module in guarded.eval().modules())


def test_gradients_reach_the_parameters_and_hooks_run():
    model, x, seen = net(), inputs(), []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    guarded = fitact_fx.guard(model)
    for each in (model, guarded):
        model.zero_grad()
        each(x).square().sum().backward()
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        if each is model:
            expected = grads
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, expected, strict=True))
    assert seen == [(4, 8, 6, 6)] * 2


def test_sites_places_and_faults_are_those_of_the_model_without_guard():
    model = net()
    guarded, plain = fitact_fx.guard(model), fitact_fx.trace(model)
    sites = [fitact_fx.find_sites(each, NAMES) for each in (guarded, plain)]
    assert sites[0] == sites[1]
    rows = [
        BitFlip(rate=1e-2).draw(each, format="q15.16", seed=1, targets=["parameters"]).rows for each in (guarded, model)
    ]
    assert list(rows[0]) == list(rows[1])
    hit = {one.name for one in BitFlip(rate=0.1).draw(guarded, seed=1, targets=["bounds"]).hits}
    assert "limits.conv.weight.copy0" in hit


def test_a_hit_reruns_the_graph_from_the_check_on_and_gives_what_the_whole_model_gives():
    model, x = net(), inputs()
    guarded = fitact_fx.guard(model)
    suffixes = Suffixes.of(guarded, [Batch((x,), {}, None)], 1 << 30, {"conv.bias": 1.0})  # which keeps the weight
    faults = BitFlip(rate=1e-3)
    for trial, targets in enumerate((["parameters"], ["bounds"], ["parameters:conv.weight"])):
        drawn = faults.draw(guarded, seed=3, trial=trial, targets=targets)
        with drawn.applied(guarded):
            found = suffixes.outputs(0, [one.name for one in drawn.hits])
            expected = run(guarded, x)
            assert torch.equal(run(guarded, x) if found is UNCHANGED else found, expected)
    assert suffixes.outputs(0, ["limits.conv.weight.copy1"]) is UNCHANGED


@pytest.mark.parametrize("compiled", [False, True])
def test_campaigns_compare_a_guarded_model_with_its_original(compiled):
    model, data = net(), [(inputs(), torch.tensor([0, 1, 2, 3]))]
    variants = {"none": model, "guard": fitact_fx.guard(model)}
    asked = {"fault": BitFlip, "rates": [1e-3], "format": "q15.16", "trials": 4, "seed": 0}
    tables = [
        fitact_fx.run_campaign(variants, data, suffixes=suffixes, compile=compiled, **asked).to_pandas()
        for suffixes in (True, False)
    ]
    assert tables[0]["sdc1"].tolist() == pytest.approx(tables[1]["sdc1"].tolist())
    assert sorted(set(tables[0]["variant"])) == ["guard", "none"]


def parametrized():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(
        nn.Embedding(11, 8), nn.GRUCell(8, 8), normed, nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


@pytest.mark.parametrize(("model", "x"), [(net(), inputs()), (parametrized(), torch.arange(6))])
def test_a_lowered_guard_is_plain_operators_and_still_guards(model, x):
    guarded = fitact_fx.guard(model)
    torch.compiler.reset()
    fast = fitact_fx.lower(guarded, x, backend="eager")
    ours = [type(each).__module__ for each in fast._orig_mod.modules()]
    assert not [name for name in ours if name.startswith("fitact_fx")]
    assert torch.allclose(run(fast, x), run(model, x), atol=1e-6)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan
    assert torch.allclose(run(fast, x), run(guarded, x), atol=1e-6)
    assert run(fast, x).isfinite().all()


def test_saved_limits_come_back_and_are_not_recorded_anew(tmp_path):
    model, x = net(), inputs()
    clean = run(model, x)
    hard = fitact_fx.harden(model, "layer", "ranger", [x], guard="parameters")
    for number, each in enumerate((fitact_fx.guard(model), hard)):
        fitact_fx.save(each, tmp_path / str(number))
        with torch.no_grad():
            before = model.conv.weight[0, 0, 0, 0].item()
            model.conv.weight[0, 0, 0, 0] = math.nan
            loaded = fitact_fx.load(tmp_path / str(number), model)
            assert torch.equal(run(loaded, x), run(each, x))
            model.conv.weight[0, 0, 0, 0] = before
        assert torch.equal(run(loaded, x), clean)


def test_what_cannot_be_guarded_is_named():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 3)).eval()
    with pytest.warns(UnprotectedWarning, match="0.weight: .*max_norm writes to it"):
        guarded = fitact_fx.guard(model)
    assert set(limits_of(guarded)) == {"1.weight", "1.bias"}


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
