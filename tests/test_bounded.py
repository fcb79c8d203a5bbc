"""The one module behind an activation: unset, by hand, moved, cast, copied, saved and loaded."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites, exchanged
from fitact_fx.errors import FitactError, RecipeError, SiteError, UncalibratedWarning
from fitact_fx.policies import Pass, Smooth
from fitact_fx.schemes.fitact import FitAct

HALF_TYPES = [torch.float16, torch.bfloat16]


class Net(nn.Module):
    """A one-sided site in front of a two-sided one."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = self.features(x)
        return F.gelu(self.head(x.mean((2, 3))))


class Activation(nn.Module):
    """The activation alone, so that what a bound sees is exactly the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net():
    torch.manual_seed(0)
    return Net().eval()


def images(count=4, seed=1):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def calibrated(model=None, **options):
    hard = fitact_fx.harden(model or net(), **options)
    fitact_fx.calibrate(hard, [images()])
    return hard


def same_bits(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def same_bounds(a, b):
    for (name, pair), (other_name, other_pair) in zip(a.items(), b.items(), strict=True):
        assert name == other_name
        for one, other in zip(pair, other_pair, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
    return True


# Unset.


@pytest.mark.filterwarnings("ignore::fitact_fx.errors.UncalibratedWarning")
def test_unset_bounds_change_no_bit_not_even_of_a_nan():
    wild = torch.tensor([[math.nan, math.inf, -math.inf, -0.0, 1e-45, 3e38]])
    wild.view(torch.int32)[0, 0] = 0x7FC12345
    hard = fitact_fx.harden(Activation(torch.relu))
    assert same_bits(hard(wild), torch.relu(wild))
    with torch.no_grad():
        assert same_bits(fitact_fx.harden(net())(images()), net()(images()))


def test_a_model_that_protects_nothing_yet_says_so_exactly_once():
    hard = fitact_fx.harden(net())
    with pytest.warns(UncalibratedWarning, match=r"protects nothing yet: run fitact_fx\.calibrate or set_bounds"):
        hard(images())
    hard(images())  # a second warning would be an error
    copy.deepcopy(hard)(images())
    with pytest.warns(UncalibratedWarning):
        fitact_fx.harden(net())(images())


def test_a_calibrated_model_warns_of_nothing_and_calibration_itself_does_not_either():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated()(images())


# Set by hand.


def test_globs_choose_the_sites_and_the_last_match_wins():
    hard = calibrated()
    before = fitact_fx.bounds(hard)
    fitact_fx.set_bounds(hard, {"*": (None, 6.0), "features.*": (None, 2)})
    after = fitact_fx.bounds(hard)
    assert list(before) == list(after) == ["features.1", "gelu"]
    assert after["features.1"][0] is after["gelu"][0] is None
    assert (after["features.1"][1].item(), after["gelu"][1].item()) == (2.0, 6.0)


def test_tensors_numbers_and_infinities_are_taken():
    hard = calibrated()
    upper = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    fitact_fx.set_bounds(hard, {"features.1": (None, upper), "gelu": (-math.inf, np.float64(1.5))})
    got = fitact_fx.bounds(hard)
    assert torch.equal(got["features.1"][1], upper.detach().float())
    assert (got["gelu"][0].item(), got["gelu"][1].item()) == (-math.inf, 1.5)
    assert not any(bound.requires_grad for pair in got.values() for bound in pair if bound is not None)


def test_a_tensor_set_by_hand_and_what_bounds_gives_are_copies():
    hard, mine = calibrated(), torch.ones(1, 3, 4, 4)
    fitact_fx.set_bounds(hard, {"features.1": (None, mine)})
    mine.zero_()
    fitact_fx.bounds(hard)["features.1"][1].fill_(7.0)
    assert (fitact_fx.bounds(hard)["features.1"][1] == 1).all()


def test_both_sides_free_makes_a_site_unset_again():
    hard = calibrated()
    fitact_fx.set_bounds(hard, {"*": (None, None)})
    with pytest.warns(UncalibratedWarning):
        hard(images())


def test_numbers_keep_the_precision_and_the_range_of_the_model():
    double = calibrated_double()
    fitact_fx.set_bounds(double, {"features.1": (None, 0.1), "gelu": (-1e300, 1e300)})
    got = fitact_fx.bounds(double)
    assert got["features.1"][1].item() == 0.1
    assert (got["gelu"][0].item(), got["gelu"][1].item()) == (-1e300, 1e300)
    single = calibrated()
    fitact_fx.set_bounds(single, {"features.1": (None, 1e39)})
    assert fitact_fx.bounds(single)["features.1"][1].item() == torch.finfo(torch.float32).max


def calibrated_double():
    hard = fitact_fx.harden(net().double())
    fitact_fx.calibrate(hard, [images().double()])
    return hard


@pytest.mark.parametrize(
    ("new", "error", "text"),
    [
        ({"gelu": (1.0, 0.5)}, SiteError, "a lower bound lies above its upper bound;\n  give them as (lower, upper)"),
        ({"gelu": (None, math.nan)}, SiteError, "a bound is NaN;\n  give a number, or infinity where the site should"),
        ({"gelu": (None, -math.inf)}, SiteError, "a bound lets nothing pass;\n  where a side should be free"),
        ({"gelu": (math.inf, math.inf)}, SiteError, "a bound lets nothing pass"),
        ({"gelu": 6.0}, RecipeError, "the bounds for 'gelu' are 6.0;\n  give (lower, upper), None for a free side"),
        ({"gelu": (6.0,)}, RecipeError, "the bounds for 'gelu' are (6.0,)"),
        ({"relu9": (None, 1.0)}, RecipeError, "the pattern 'relu9' matches no site; the sites are features.1, gelu"),
    ],
)
def test_bounds_that_make_no_sense_change_nothing_at_all(new, error, text):
    hard = calibrated()
    before, scales = fitact_fx.bounds(hard), [each.scale for each in bounded_sites(hard).values()]
    with pytest.raises(error) as raised:
        fitact_fx.set_bounds(hard, {"features.*": (None, 1000.0), **new})
    assert text in str(raised.value)
    if error is SiteError:
        assert str(raised.value).startswith("site gelu (test_bounded.py:")
        assert "in forward: return F.gelu(self.head(x.mean((2, 3))))" in str(raised.value)
    assert same_bounds(before, fitact_fx.bounds(hard))
    assert scales == [each.scale for each in bounded_sites(hard).values()]


def test_a_bound_of_a_shape_that_does_not_fit_is_named_when_it_is_used():
    hard = fitact_fx.harden(net())
    fitact_fx.set_bounds(hard, {"*": (None, 1.0), "features.1": (None, torch.ones(7))})
    with pytest.raises(SiteError) as raised:
        hard(images())
    assert str(raised.value).startswith("site features.1 (test_bounded.py:")
    assert str(raised.value).endswith(
        "its neuron bounds have shape (7,), and activations of shape (4, 3, 4, 4) need (1, 3, 4, 4);\n"
        "  calibrate again with such inputs, or set bounds of that shape"
    )


def test_only_a_hardened_model_has_bounds():
    for call in (fitact_fx.bounds, lambda model: fitact_fx.set_bounds(model, {"*": (None, 1.0)})):
        with pytest.raises(
            SiteError, match=r"this Net is not a hardened model;\n  pass what fitact_fx\.harden returned"
        ):
            call(net())


# What passes, in every type and at every granularity.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("policy", ["zero", "clamp"])
@pytest.mark.parametrize("function", [torch.relu, F.gelu, torch.tanh], ids=["relu", "gelu", "tanh"])
@pytest.mark.parametrize("granularity", ["neuron", "layer"])
def test_no_nan_and_no_infinity_passes_finite_bounds(function, policy, dtype, granularity):
    hard = fitact_fx.harden(Activation(function), granularity, scheme=FitAct(policy=policy)).to(dtype)
    clean = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    fitact_fx.calibrate(hard, [clean])
    assert same_bits(hard(clean).view(torch.int16), function(clean).view(torch.int16))
    wild = torch.tensor([math.nan, math.inf, -math.inf, 1e4, -1e4, torch.finfo(dtype).max], dtype=dtype)
    got = hard(wild.repeat(3, 1))
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert got[0, 0] == 0


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_a_fault_in_a_bound_lets_nothing_through_that_is_not_finite(where):
    hard = fitact_fx.harden(Activation(torch.tanh))
    fitact_fx.calibrate(hard, [torch.randn(8, 6, generator=torch.Generator().manual_seed(0))])
    getattr(bounded_sites(hard)["tanh"], where)[0, 2] = math.nan
    assert hard(torch.tensor([[math.nan, 1.0, math.nan, 0.1, -1.0, math.inf]])).isfinite().all()


def test_under_autocast_the_values_keep_their_type_and_their_slack():
    hard = fitact_fx.harden(net())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        fitact_fx.calibrate(hard, [images()])
        got, clean = hard(images()), net()(images())
        one_by_one = torch.cat([hard(image) for image in images().split(1)])
    assert {bounded.upper.dtype for bounded in bounded_sites(hard).values()} == {torch.float32}
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, clean)
    torch.testing.assert_close(one_by_one, clean)


# Policies exchanged for a while.


def test_an_exchanged_policy_is_put_back_even_after_an_error():
    hard = calibrated()
    own = [bounded.policy for bounded in bounded_sites(hard).values()]

    def fail_inside():
        with exchanged(hard, Smooth(5.0)):
            assert {bounded.policy for bounded in bounded_sites(hard).values()} == {Smooth(5.0)}
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [bounded.policy for bounded in bounded_sites(hard).values()] == own


def test_with_every_value_passing_no_shape_is_refused_and_nothing_is_bounded():
    hard, model, larger = calibrated(), net(), torch.randn(1, 2, 9, 9) * 100
    with torch.no_grad(), exchanged(hard, Pass()):
        assert torch.equal(hard(larger), model(larger))


# Moving, casting, copying.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_cast_moves_the_bounds_along_before_and_after_calibration(dtype):
    before = fitact_fx.harden(net()).to(dtype)
    fitact_fx.calibrate(before, [images().to(dtype)])
    exact = calibrated()
    wanted = {name: [b if b is None else b.to(dtype) for b in pair] for name, pair in fitact_fx.bounds(exact).items()}
    after = exact.to(dtype)
    assert same_bounds(wanted, fitact_fx.bounds(after))
    for hard in (before, after):
        assert {b.dtype for pair in fitact_fx.bounds(hard).values() for b in pair if b is not None} == {dtype}
        with torch.no_grad():
            assert torch.equal(hard(images().to(dtype)), net().to(dtype)(images().to(dtype)))


def test_a_cast_of_the_hardened_model_is_no_cast_of_the_users():
    model = net()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    hard = fitact_fx.harden(model)
    copy.deepcopy(hard).half()
    assert all(
        weights[name].dtype == now.dtype and torch.equal(weights[name], now) for name, now in model.state_dict().items()
    )


@pytest.mark.parametrize("way", ["cast", "set afterwards", "load afterwards"])
def test_a_finite_bound_that_a_half_type_cannot_hold_stays_finite(way):
    hard = fitact_fx.harden(Activation(F.gelu))
    wide = {"gelu": (-1e6, torch.tensor([[1e6, math.inf]]))}
    fitact_fx.set_bounds(hard, wide)
    if way == "cast":
        hard.half()
    else:
        saved = hard.state_dict()
        hard = fitact_fx.harden(Activation(F.gelu)).half()
        hard.load_state_dict(saved) if way == "load afterwards" else fitact_fx.set_bounds(hard, wide)
    lower, upper = fitact_fx.bounds(hard)["gelu"]
    assert lower.dtype == upper.dtype == torch.float16
    assert lower.item() == -65504
    assert upper.tolist() == [[65504, math.inf]]
    assert hard(torch.tensor([[math.inf, math.inf]]).half()).tolist() == [[0.0, math.inf]]


def test_a_copy_is_bounded_alike_and_shares_nothing():
    hard = calibrated()
    twin = copy.deepcopy(hard)
    assert same_bounds(fitact_fx.bounds(hard), fitact_fx.bounds(twin))
    fitact_fx.set_bounds(twin, {"*": (None, 0.0)})
    assert (fitact_fx.bounds(hard)["features.1"][1] > 0).any()
    loud = images() * 100
    with torch.no_grad():
        assert not torch.equal(hard(loud), twin(loud))
        assert torch.equal(copy.deepcopy(hard)(loud), hard(loud))


def test_an_unset_copy_is_calibrated_alone():
    hard = fitact_fx.harden(net())
    twin = copy.deepcopy(hard)
    fitact_fx.calibrate(twin, [images()])
    assert fitact_fx.bounds(hard) == {"features.1": (None, None), "gelu": (None, None)}


def test_the_meta_device_is_survived():
    hard = calibrated().to("meta")
    assert {b.device.type for pair in fitact_fx.bounds(hard).values() for b in pair if b is not None} == {"meta"}
    assert hard(images().to("meta")).shape == (4, 4)
    unset = fitact_fx.harden(net()).to("meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*", category=UserWarning)
        unset.load_state_dict(calibrated().state_dict())
    loaded = fitact_fx.harden(net()).to("meta")
    loaded.load_state_dict(calibrated().state_dict(), assign=True)
    assert same_bounds(fitact_fx.bounds(loaded), fitact_fx.bounds(calibrated()))
    loud = images() * 100
    with torch.no_grad():
        assert torch.equal(loaded(loud), calibrated()(loud))


# state_dict.


@pytest.mark.parametrize("target", ["unset", "set", "set to numbers"])
def test_a_state_dict_brings_the_bounds_along(target, tmp_path):
    hard = calibrated()
    torch.save(hard.state_dict(), tmp_path / "state.pt")
    other = fitact_fx.harden(net())
    if target == "set":
        fitact_fx.calibrate(other, [images(seed=5)])
    if target == "set to numbers":
        other = fitact_fx.harden(net(), granularity="layer")
        fitact_fx.calibrate(hard := fitact_fx.harden(net(), granularity="layer"), [images()])
        fitact_fx.set_bounds(other, {"*": (None, 1.0), "gelu": (0.0, 1.0)})
        torch.save(hard.state_dict(), tmp_path / "state.pt")
    missing, unexpected = other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not missing
    assert not unexpected
    assert same_bounds(fitact_fx.bounds(hard), fitact_fx.bounds(other))
    loud = images() * 100
    with torch.no_grad():
        assert torch.equal(hard(loud), other(loud))


def test_a_state_dict_without_bounds_is_the_models_own():
    hard, model = fitact_fx.harden(net()), net()
    assert list(hard.state_dict()) == list(model.state_dict())
    model.load_state_dict(hard.state_dict())
    hard.load_state_dict(model.state_dict())


def test_a_state_dict_without_bounds_does_not_silently_fit_a_model_that_has_them():
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"features.1_bound.upper\""):
        calibrated().load_state_dict(net().state_dict())


def test_a_state_dict_of_another_shape_names_the_bound():
    hard = fitact_fx.harden(net())
    fitact_fx.calibrate(hard, [torch.randn(2, 2, 8, 8)])
    with pytest.raises(RuntimeError, match=r"size mismatch for features.1_bound.upper"):
        hard.load_state_dict(calibrated().state_dict())


def test_training_and_evaluation_mode_do_not_change_the_bounds():
    hard = calibrated()
    before = fitact_fx.bounds(hard)
    hard.train()
    assert all(bounded.training for bounded in bounded_sites(hard).values())
    hard.eval()
    assert not any(bounded.training for bounded in bounded_sites(hard).values())
    assert same_bounds(before, fitact_fx.bounds(hard))


def test_a_printed_model_shows_how_each_site_is_bounded():
    assert "Bounded(features.1, neuron, zero, upper (1, 3, 4, 4))" in repr(calibrated())
    assert "Bounded(gelu, layer, clamp, bounds not set)" in repr(
        fitact_fx.harden(net(), granularity="layer", scheme=FitAct(policy="clamp"))
    )


def test_every_error_here_is_one_of_the_librarys():
    assert issubclass(SiteError, FitactError)
    assert issubclass(RecipeError, FitactError)
