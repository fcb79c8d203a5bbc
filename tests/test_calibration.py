"""Calibration against NumPy: a neuron's bound is its own extreme over all the data, and nothing else changes."""

import random
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import CalibrationError, SiteError, UncalibratedWarning

SIZES = (5, 1, 8, 3, 7)


class Net(nn.Module):
    """Sites behind a convolution, BatchNorm and a Linear; one-sided and two-sided; dropout and BatchNorm statistics."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.gelu = nn.GELU()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 16, 5)
        self.tanh = nn.Tanh()

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.drop(self.gelu(self.norm(self.conv2(x))))
        return self.tanh(self.head(x.flatten(1)))


SITES = ("relu", "gelu", "tanh")


def net():
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.norm.running_mean, std=0.2)
    return model.eval()


def batches(sizes=SIZES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 2, 8, 8, generator=generator) for size in sizes]


def calibrated(data, granularity="neuron"):
    hard = fitact_fx.harden(net(), granularity)
    fitact_fx.calibrate(hard, data)
    return hard


def clean_activations(data):
    """Site -> all its clean values, (samples, ...), from hooks on the plain model."""
    model, seen = net(), {name: [] for name in SITES}
    for name in SITES:
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: seen[name].append(out.numpy()))
    with torch.no_grad():
        for batch in data:
            model(batch)
    return {name: np.concatenate(arrays) for name, arrays in seen.items()}


def reduced(values, granularity, of):
    """NumPy's min or max over what shares a bound, in the bound's shape."""
    if granularity == "layer":
        return of(values)
    axes = (0,) if granularity == "neuron" else tuple(axis for axis in range(values.ndim) if axis != 1)
    return of(values, axis=axes, keepdims=True)


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
def test_bounds_are_the_extremes_element_by_element_over_five_batches(granularity):
    data = batches()
    bounds = fitact_fx.bounds(calibrated(data, granularity))
    for name, values in clean_activations(data).items():
        lower, upper = bounds[name]
        np.testing.assert_array_equal(upper.numpy(), reduced(values, granularity, np.max), strict=True)
        if name == "relu":
            assert lower is None
        else:
            np.testing.assert_array_equal(lower.numpy(), reduced(values, granularity, np.min), strict=True)


def test_a_neurons_bound_never_leaks_to_another_neuron_of_its_channel():
    """The defect of a published toolbox: from the third batch on, neuron bounds became channel maxima."""
    loud = [torch.zeros(2, 1, 4, 4) for _ in range(16)]
    for place, batch in enumerate(loud):
        batch[:, 0, place // 4, place % 4] = place + 1.0
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()))
    fitact_fx.calibrate(hard, loud)
    assert fitact_fx.bounds(hard)["0"][1].flatten().tolist() == [place + 1.0 for place in range(16)]


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
def test_number_size_and_order_of_batches_do_not_matter(granularity):
    # Through elementwise operators only: convolutions of another batch size may round otherwise.
    samples = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.ReLU()).eval()
    found = []
    for data in ([samples], samples.split(1), samples.flip(0).split(5), [samples[7:], samples[:7]], [samples] * 3):
        hard = fitact_fx.harden(model, granularity)
        fitact_fx.calibrate(hard, data)
        found.append(fitact_fx.bounds(hard))
    for other in found[1:]:
        for name, (lower, upper) in found[0].items():
            assert torch.equal(upper, other[name][1])
            assert lower is None or torch.equal(lower, other[name][0])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    granularity=st.sampled_from(["neuron", "layer"]),
    seed=st.integers(0, 99),
)
def test_any_shape_in_any_batches_gives_numpys_extremes(shape, sizes, granularity, seed):
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(size, *shape, generator=generator) for size in sizes]
    hard = fitact_fx.harden(nn.Sequential(nn.Hardtanh(-2, 2)), granularity)
    fitact_fx.calibrate(hard, data)
    values = np.clip(np.concatenate([batch.numpy() for batch in data]), -2, 2)
    lower, upper = fitact_fx.bounds(hard)["0"]
    np.testing.assert_array_equal(lower.numpy(), reduced(values, granularity, np.min), strict=True)
    np.testing.assert_array_equal(upper.numpy(), reduced(values, granularity, np.max), strict=True)


def test_an_activation_without_dimensions_is_calibrated_too():
    class Gate(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x.mean())

    for granularity in ("neuron", "layer"):
        hard = fitact_fx.harden(Gate(), granularity)
        fitact_fx.calibrate(hard, [torch.ones(2, 3), torch.zeros(2, 3)])
        assert fitact_fx.bounds(hard)["sigmoid"][1].item() == torch.sigmoid(torch.tensor(1.0)).item()
        assert hard(torch.ones(2, 3)).shape == ()


def test_channels_behind_a_linear_layer_are_in_the_last_dimension():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU()), torch.randn(2, 7, 3)
    hard = fitact_fx.harden(model, "channel")
    fitact_fx.calibrate(hard, [x])
    expected = model(x).detach().numpy().max((0, 1), keepdims=True)
    np.testing.assert_array_equal(fitact_fx.bounds(hard)["1"][1].numpy(), expected, strict=True)


def test_calibration_replaces_earlier_bounds_also_at_another_input_size():
    hard = calibrated([batch * 10 for batch in batches()])
    fitact_fx.calibrate(hard, batches())
    fresh = fitact_fx.bounds(calibrated(batches()))
    for name, (lower, upper) in fitact_fx.bounds(hard).items():
        assert torch.equal(upper, fresh[name][1])
        assert lower is None or torch.equal(lower, fresh[name][0])
    small = fitact_fx.harden(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()))
    for pixels in (8, 12, 5):
        fitact_fx.calibrate(small, [torch.ones(1, 1, pixels, pixels)])
        assert fitact_fx.bounds(small)["1"][1].shape == (1, 1, pixels - 2, pixels - 2)


def test_clean_data_passes_a_calibrated_model_unchanged():
    data = batches()
    hard, model = calibrated(data), net()
    with torch.no_grad():
        assert all(torch.equal(hard(batch), model(batch)) for batch in data)


# What calibration must leave alone.


class Watched:
    """Batches that, each time one is asked for, count which activations of earlier ones are still alive."""

    def __init__(self, data, hard):
        self.data, self.refs, self.alive, self.most = data, [], [], 0
        for name in SITES:
            getattr(hard, name).register_forward_hook(lambda _, __, out: self.refs.append(weakref.ref(out)))

    def __iter__(self):
        for batch in self.data:
            self.alive.append(sum(ref() is not None for ref in self.refs))
            yield batch


def test_no_activation_is_kept():
    hard = fitact_fx.harden(net(), "layer")
    watched = Watched(batches(), hard)
    fitact_fx.calibrate(hard, watched)
    assert len(watched.refs) == len(SIZES) * len(SITES)
    assert watched.alive == [0] * len(SIZES)
    assert sum(ref() is not None for ref in watched.refs) == 0
    for pair in fitact_fx.bounds(calibrated(batches())).values():
        for bound in pair:
            assert bound is None or bound.untyped_storage().nbytes() == bound.numel() * 4


@pytest.mark.parametrize("hard_mode", [True, False])
@pytest.mark.parametrize("user_mode", [True, False])
def test_modes_statistics_weights_and_gradients_are_as_before(user_mode, hard_mode):
    model = net().train(user_mode)
    model.norm.eval()
    hard = fitact_fx.harden(model).train(hard_mode)
    hard.drop.train(not hard_mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitact_fx.calibrate(hard, batches())
    assert [model.training, model.norm.training] == [user_mode, False]
    assert [hard.training, hard.norm.training, hard.drop.training] == [hard_mode, hard_mode, not hard_mode]
    for held in (model, hard):
        assert all(torch.equal(before[name], held.state_dict()[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_calibration_runs_in_evaluation_mode_whatever_mode_the_model_is_in():
    evaluated = fitact_fx.bounds(calibrated(batches()))
    hard = fitact_fx.harden(net().train())
    fitact_fx.calibrate(hard, batches())
    assert all(torch.equal(evaluated[name][1], upper) for name, (_, upper) in fitact_fx.bounds(hard).items())


def test_the_global_random_states_are_as_before_even_with_a_shuffling_loader():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            random.random()
            np.random.rand()  # noqa: NPY002  what users' data sets do
            torch.rand(1)
            return super().__getitem__(index)

    loader = DataLoader(Noisy(torch.cat(batches())), batch_size=5, shuffle=True)
    hard = fitact_fx.harden(net())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    fitact_fx.calibrate(hard, loader)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def test_hooks_of_calibration_are_gone_afterwards():
    hard = calibrated(batches())
    with pytest.raises(CalibrationError):
        fitact_fx.calibrate(hard, [])
    assert not any(bounded._forward_hooks for bounded in bounded_sites(hard).values())


# Bad data: an error that says what to do, and nothing changed.


class Branch(nn.Module):
    """Two sites side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return F.relu(self.a(x)) + F.gelu(self.b(x))


class Wrapped(nn.Module):
    """A hardened model inside a model that never calls it on small inputs."""

    def __init__(self, hard):
        super().__init__()
        self.hard = hard

    def forward(self, x):
        return self.hard(x) if x.sum() > 10 else x


def _with(value):
    data = batches()
    data[3][1, 0, 2, 2] = value
    return data


class Overflowing(nn.Module):
    """Finite data that overflows on the way."""

    def forward(self, x):
        return torch.relu(x * 3e38)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            _with(float("nan")),
            "batch 3 holds NaN, which is nothing to learn bounds from;\n  clean the data",
        ),
        (_with(float("inf")), "its clean values hold NaN or infinity in batch 3"),
        ([], "the data is empty"),
        (iter([]), "pass a re-iterable, not a used-up iterator"),
        ([*batches(), torch.empty(0, 2, 8, 8)], "batch 5 holds no samples;\n  drop empty batches from the data"),
        ([*batches(), "end"], "cannot read a batch of type str"),
    ],
    ids=["NaN", "infinity", "empty", "used up", "empty batch", "no batch"],
)
@pytest.mark.parametrize("state", ["unset", "set"])
def test_bad_data_is_refused_and_nothing_has_changed(data, text, state):
    hard = fitact_fx.harden(net())
    if state == "set":
        fitact_fx.calibrate(hard, batches())
    before = fitact_fx.bounds(hard)
    with pytest.raises(CalibrationError) as raised:
        fitact_fx.calibrate(hard, data)
    assert text in str(raised.value)
    _same(before, fitact_fx.bounds(hard))
    assert not any(bounded._forward_hooks for bounded in bounded_sites(hard).values())
    assert all(bounded.policy is bounded.spec.policy for bounded in bounded_sites(hard).values())


def _same(before, after):
    for name, pair in before.items():
        for old, new in zip(pair, after[name], strict=True):
            assert (old is None and new is None) or torch.equal(old, new)


def test_clean_values_that_overflow_name_the_site_the_line_and_the_batch():
    hard = fitact_fx.harden(Overflowing())
    with pytest.raises(CalibrationError) as raised:
        fitact_fx.calibrate(hard, [torch.ones(2, 2), torch.full((2, 2), 9.0)])
    assert str(raised.value).startswith("site relu (test_calibration.py:")
    assert "in forward: return torch.relu(x * 3e38)" in str(raised.value)
    assert "its clean values hold NaN or infinity in batch 1;\n  find out why the unhardened model" in str(raised.value)
    assert fitact_fx.bounds(hard) == {"relu": (None, None)}


def test_a_shape_that_changes_under_neuron_bounds_is_refused_and_fits_coarser_ones():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    data = [torch.ones(2, 1, 8, 8), torch.ones(2, 1, 10, 10)]
    hard = fitact_fx.harden(model)
    with pytest.raises(SiteError) as raised:
        fitact_fx.calibrate(hard, data)
    assert str(raised.value).startswith("site 1 (")
    assert str(raised.value).endswith(
        "its neuron bounds were calibrated for (3, 6, 6) and it now gets (3, 8, 8);\n"
        '  calibrate again at this input size, or harden with granularity="channel"'
    )
    assert fitact_fx.bounds(hard) == {"1": (None, None)}
    for granularity, shape in (("channel", (1, 3, 1, 1)), ("layer", ())):
        hard = fitact_fx.harden(model, granularity)
        fitact_fx.calibrate(hard, data)
        assert fitact_fx.bounds(hard)["1"][1].shape == shape


def test_a_shape_that_changes_after_calibration_is_refused_with_the_users_line():
    class Small(nn.Module):
        def forward(self, x):
            return F.relu(x)

    hard = fitact_fx.harden(Small())
    fitact_fx.calibrate(hard, [torch.ones(2, 64, 5, 5)])
    with pytest.raises(SiteError) as raised:
        hard(torch.ones(2, 64, 3, 3))
    assert str(raised.value).startswith("site relu (test_calibration.py:")
    assert "in forward: return F.relu(x))\n  its neuron bounds were calibrated for (64, 5, 5)" in str(raised.value)


def test_a_number_of_channels_that_changes_is_refused():
    hard = fitact_fx.harden(nn.Sequential(nn.Softmax(1), nn.Identity(), nn.ReLU()), "channel")
    fitact_fx.calibrate(hard, [torch.ones(2, 4)])
    with pytest.raises(SiteError) as raised:
        hard(torch.ones(2, 6))
    assert "its channel bounds have shape (1, 4), and activations of shape (2, 6) need (1, 6)" in str(raised.value)


def test_a_site_that_no_batch_reached_is_named():
    inner = fitact_fx.harden(Branch())
    with pytest.raises(CalibrationError) as raised:
        fitact_fx.calibrate(Wrapped(inner), [torch.zeros(2, 2)])
    assert str(raised.value).startswith("site relu (test_calibration.py:")
    assert "it did not run on any batch;\n  calibrate with data that reaches it, or harden without it" in str(
        raised.value
    )
    fitact_fx.calibrate(Wrapped(inner), [torch.zeros(2, 2), torch.full((2, 2), 9.0)])
    assert all(upper is not None for _, upper in fitact_fx.bounds(inner).values())


def test_a_channel_that_is_not_known_is_said_at_calibration():
    class Unknown(nn.Module):
        def forward(self, x):
            return F.relu(x)

    hard = fitact_fx.harden(Unknown(), "channel")
    with pytest.raises(SiteError) as raised:
        fitact_fx.calibrate(hard, [torch.ones(2, 3, 4)])
    assert "in forward: return F.relu(x))\n  where its channels lie could not be told" in str(raised.value)
    assert str(raised.value).endswith('harden with granularity="neuron" or "layer" here')


def test_an_error_of_the_model_itself_comes_out_as_it_is():
    hard = calibrated(batches())
    before = fitact_fx.bounds(hard)
    with pytest.raises(RuntimeError, match="expected input"):
        fitact_fx.calibrate(hard, [*batches(), torch.ones(1, 7, 8, 8)])
    _same(before, fitact_fx.bounds(hard))


def test_only_a_hardened_model_can_be_calibrated():
    with pytest.raises(SiteError, match=r"this Net is not a hardened model;\n  pass what fitact_fx\.harden returned"):
        fitact_fx.calibrate(net(), batches())


def test_an_uncalibrated_model_is_calibrated_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncalibratedWarning)
        calibrated(batches())


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x, gate):
        return self.relu(x * gate)


class Shifted(Gated):
    """A second input that may be left out."""

    def forward(self, x, shift=None):
        return self.relu(F.linear(x, torch.eye(3), shift))


class Starred(Gated):
    def forward(self, *inputs):
        return self.relu(inputs[0])


class Switched(Gated):
    def forward(self, x, train=False):
        return self.relu(x)


@pytest.mark.parametrize("model", [Gated(), Shifted(), Starred()], ids=["needed", "optional", "any number"])
def test_a_second_input_in_the_place_of_labels_is_refused(model):
    a, b = torch.rand(3, 3), torch.full((3, 3), 5.0)
    hard = fitact_fx.harden(model, "layer")
    with pytest.raises(CalibrationError, match=r"^batch 0 is \(inputs, labels\), .*;\n  give two inputs as \(\(first"):
        fitact_fx.calibrate(hard, [(a, b)])
    assert fitact_fx.bounds(hard) == {"relu": (None, None)}


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.ReLU()), lambda a, b: (a, b)),
        (Switched(), lambda a, b: (a, b)),
        (Shifted(), lambda a, b: (a, b[:, 0])),
        (Shifted(), lambda a, b: (a, b.long())),
        (Shifted(), lambda a, b: {"x": a, "labels": b}),
        (Starred(), lambda a, b: ((a, b), b[:, :2])),
    ],
    ids=["one input", "a switch", "another shape", "whole numbers", "by name", "behind two inputs"],
)
def test_targets_of_any_kind_are_left_aside_where_they_cannot_be_an_input(model, batch):
    a, b = torch.rand(6, 3), torch.full((6, 3), 5.0)
    hard = fitact_fx.harden(model, "layer")
    fitact_fx.calibrate(hard, [batch(a, b)])
    (pair,) = fitact_fx.bounds(hard).values()
    assert pair[1] == a.max()
