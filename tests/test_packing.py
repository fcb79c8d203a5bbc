"""Bounds stored in fewer bits: rounded outwards, really that small, and hit by faults in their own words."""

import copy
import io
import pickle
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import CalibrationError, RecipeError, SiteError
from fitact_fx.learning import Learning
from fitact_fx.schemes.fitact import FitAct

PACKED = ("bfloat16", "int8")
ODD = [0.0, 1e-45, 1e-30, 2.0**-126, 0.1, 1 / 3, 1.0, 1.00390625, 1.0039063, 250.0, 254.0, 255.0, 65519.0]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.GELU()).eval()


def images(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


ANYWHERE = FitAct(learning=Learning(distortion=float("inf")))  # however far outputs are moved


def calibrated(granularity: str = "neuron") -> nn.Module:
    hard = fitact_fx.harden(network(), granularity, ANYWHERE)
    fitact_fx.calibrate(hard, [images()])
    return hard


def packed(stored: str, granularity: str = "neuron") -> nn.Module:
    hard = calibrated(granularity)
    fitact_fx.store_bounds(hard, stored)
    return hard


def with_bounds(lower: object, upper: object, stored: str) -> nn.Module:
    hard = fitact_fx.harden(nn.Sequential(nn.Identity(), nn.GELU()), "neuron")
    fitact_fx.set_bounds(hard, {"1": (lower, upper)})
    fitact_fx.store_bounds(hard, stored)
    return hard


def sides(hard: nn.Module) -> list[tuple[str, torch.Tensor]]:
    pairs = fitact_fx.bounds(hard).values()
    return [
        (side, bound)
        for pair in pairs
        for side, bound in zip(("lower", "upper"), pair, strict=True)
        if bound is not None
    ]


def memory(hard: nn.Module) -> dict[str, torch.Tensor]:
    return {name: held for name, held in hard.state_dict().items() if "_bound." in name}


def words(hard: nn.Module) -> dict[str, bytes]:
    return {name: held.reshape(-1).view(torch.uint8).numpy().tobytes() for name, held in memory(hard).items()}


def least_bfloat16(value: float) -> float:
    """The least one that is not below a value from 0 up, by counting up from the cut word."""
    word = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    numbers = [struct.unpack("<f", struct.pack("<I", each << 16))[0] for each in (word, word + 1)]
    return next(number for number in numbers if Fraction(number) >= Fraction(value))


@pytest.mark.parametrize("side", ["upper", "lower"])
def test_a_bfloat16_bound_is_the_nearest_one_outside(side: str) -> None:
    sign = 1 if side == "upper" else -1
    given = torch.tensor([*ODD, 3.3e38]) * sign
    hard = with_bounds(given if sign < 0 else None, given if sign > 0 else None, "bfloat16")
    expected = [sign * least_bfloat16(float(np.float32(abs(each)))) for each in given.tolist()]
    assert dict(sides(hard))[side].tolist() == expected
    # A bound on the other side of zero moves towards zero.
    inner = with_bounds(*((-given, None) if sign > 0 else (None, -given)), "bfloat16")
    inside = {"upper": "lower", "lower": "upper"}[side]
    assert dict(sides(inner))[inside].tolist() == [-each for each in expected] if sign > 0 else True


@pytest.mark.parametrize("side", ["upper", "lower"])
def test_a_finite_bound_beyond_all_of_bfloat16_becomes_its_largest_number_and_no_infinity(side: str) -> None:
    sign = 1 if side == "upper" else -1
    given = torch.tensor([3.4e38, 1.0]) * sign
    hard = with_bounds(given if sign < 0 else None, given if sign > 0 else None, "bfloat16")
    largest = struct.unpack("<f", b"\x00\x00\x7f\x7f")[0]
    assert dict(sides(hard))[side].tolist() == [sign * largest, sign * 1.0]


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("largest", [255.0, 1e-3, 7.7, 1e-44, 3e38])
def test_an_int8_bound_is_the_nearest_step_outside(side: str, mixed: bool, largest: float) -> None:
    sign, steps = (1 if side == "upper" else -1), (127 if mixed else 254)
    given = (torch.cat([torch.zeros(1), torch.rand(50), torch.ones(1)]).double() * largest).float() * sign
    if mixed:
        given[::2] *= -1
    hard = with_bounds(given if sign < 0 else None, given if sign > 0 else None, "int8")
    (scale,) = (Fraction(held.item()) for name, held in memory(hard).items() if name.endswith("scale"))
    wanted = Fraction(given.abs().max().item()) / steps
    assert wanted <= scale <= wanted * (1 + Fraction(1, 2**15)) + Fraction(1, 2**149)
    found = [Fraction(each) for each in dict(sides(hard))[side].tolist()]
    outside = [-(-sign * Fraction(each) // scale) * scale * sign for each in given.tolist()]
    assert found == outside


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_bound_lies_outside_its_own_and_calibration_data_pass(
    stored: str, granularity: str, dtype: torch.dtype
) -> None:
    model, x = network().to(dtype), images().to(dtype)
    hard = fitact_fx.harden(model, granularity)
    fitact_fx.calibrate(hard, [x])
    before = sides(hard)
    fitact_fx.store_bounds(hard, stored)
    for (side, old), (_, new) in zip(before, sides(hard), strict=True):
        assert bool((new.double() >= old.double()).all() if side == "upper" else (new.double() <= old.double()).all())
    assert torch.equal(hard(x), model(x))
    step = {"bfloat16": 2.0**-7, "int8": 1 / 120}[stored]
    assert all(
        (new - old).abs().max() <= step * old.abs().max()
        for (_, old), (_, new) in zip(before, sides(hard), strict=True)
    )


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize("size", [1e-40, 1.0, 1e30])
def test_storing_again_and_again_moves_no_bound(stored: str, size: float) -> None:
    bounds = (torch.rand(12, 6, generator=torch.Generator().manual_seed(0)).double() - 0.5) * size
    for upper in (bounds, bounds - size, -bounds.abs()):
        hard = with_bounds(upper - size / 3, upper, stored)
        before = memory(hard)
        for each in ("float32", stored, stored):
            fitact_fx.store_bounds(hard, each)
        assert all(torch.equal(held, before[name]) for name, held in memory(hard).items())


@pytest.mark.parametrize("stored", PACKED)
def test_infinity_stays_infinite_zero_zero_and_unset_unset(stored: str) -> None:
    inf = torch.inf
    hard = with_bounds(torch.tensor([-inf, 0.0, -1.0, -2.0]), torch.tensor([3.0, 0.0, inf, inf]), stored)
    low, high = fitact_fx.bounds(hard)["1"]
    assert low.tolist()[:2] == [-inf, 0.0]
    assert high.tolist()[1:] == [0.0, inf, inf]
    assert np.signbit(low.numpy())[1] == np.signbit(high.numpy())[1] == np.False_
    mixed = with_bounds(torch.tensor([-inf, 1.0, -1.0]), None, stored)
    assert fitact_fx.bounds(mixed)["1"][0].tolist() == [
        -inf,
        pytest.approx(1.0, rel=0.01),
        pytest.approx(-1.0, rel=0.01),
    ]
    assert fitact_fx.bounds(mixed)["1"][1] is None
    assert fitact_fx.bounds(with_bounds(None, torch.full((3,), inf), stored))["1"][1].tolist() == [inf] * 3
    assert fitact_fx.bounds(with_bounds(None, torch.zeros(3), stored))["1"][1].tolist() == [0.0] * 3
    unset = fitact_fx.harden(network())
    fitact_fx.store_bounds(unset, stored)
    assert set(fitact_fx.bounds(unset).values()) == {(None, None)}


@pytest.mark.parametrize(("stored", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_the_bytes_are_those_in_memory_in_the_file_and_in_the_report(stored, size, tmp_path) -> None:
    hard = packed(stored)
    numbers, scales = 4 * 36 + 2 * 20, 3 if stored == "int8" else 0
    assert sum(held.nbytes for held in memory(hard).values()) == size * numbers + 4 * scales
    fitact_fx.save(hard, tmp_path / "bounds")
    assert sum(held.nbytes for held in load_file(tmp_path / "bounds").values()) == size * numbers + 4 * scales
    found = fitact_fx.run_campaign({"hard": hard}, [(images(8), torch.arange(8) % 10)], rates=[0.0], trials=1)
    assert found.settings["variants"]["hard"]["bound_bytes"] == size * numbers + 4 * scales
    assert found.table().endswith(f"bytes of bounds and guards: hard {size * numbers + 4 * scales:,}")


@pytest.mark.parametrize("stored", PACKED)
def test_copies_files_states_and_casts_keep_the_words(stored, tmp_path) -> None:
    hard = packed(stored)
    own, x = words(hard), images(6)
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", network())
    fresh, other = fitact_fx.harden(network()), packed("bfloat16" if stored == "int8" else "int8")
    for into in (fresh, other):
        assert not any(into.load_state_dict(hard.state_dict()))
    again = pickle.load(io.BytesIO(pickle.dumps(hard)))
    for same in (
        copy.deepcopy(hard),
        loaded,
        fresh,
        other,
        again,
        copy.deepcopy(hard).half().float(),
        copy.deepcopy(hard).double(),
    ):
        assert words(same) == own
        assert {site.stored for site in bounded_sites(same).values()} == {stored}
    assert torch.equal(fresh(x), hard(x))
    assert torch.equal(loaded(x), hard(x))
    full = calibrated()
    hard.load_state_dict(full.state_dict())
    assert words(hard) == words(full)


@pytest.mark.parametrize("stored", PACKED)
def test_what_is_set_later_is_stored_so_again(stored: str) -> None:
    hard, early = packed(stored), fitact_fx.harden(network())
    fitact_fx.store_bounds(early, stored)
    fitact_fx.calibrate(early, [images()])
    assert words(early) == words(hard)
    own = words(hard)
    fitact_fx.set_bounds(hard, fitact_fx.bounds(hard))  # what was rounded once is not rounded again
    assert words(hard) == own
    fitact_fx.post_train(hard, [images(), images()[:7] + 1], max_drop=0.9)
    assert {name: held.dtype for name, held in memory(hard).items()} == {
        name: held.dtype for name, held in memory(early).items()
    }
    assert words(hard) != own
    learned = words(hard)
    with pytest.raises(CalibrationError):
        fitact_fx.post_train(hard, [])
    assert words(hard) == learned
    rounded = fitact_fx.bounds(hard)["1"][1]
    fitact_fx.store_bounds(hard, "float32")
    assert torch.equal(hard.get_buffer("1_bound.upper"), rounded)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(RecipeError, match="unknown format of bounds 'int4'"):
        fitact_fx.store_bounds(calibrated(), "int4")
    with pytest.raises(SiteError, match="is not a hardened model"):
        fitact_fx.store_bounds(network(), "int8")


@pytest.mark.parametrize("stored", PACKED)
def test_lowered_code_computes_with_the_rounded_bounds(stored: str) -> None:
    hard, x = packed(stored), 3 * images(5)
    for site in bounded_sites(hard).values():
        assert bool((site(torch.full((2, *site.upper.shape[1:]), 1e4)) == 0).all())
    assert torch.allclose(fitact_fx.lower(hard, (x,), backend="eager")(x), hard(x), atol=1e-6)


@pytest.mark.parametrize("stored", PACKED)
def test_floats_that_learning_puts_in_the_place_of_words_are_stored_so_too(stored: str) -> None:
    hard = packed(stored)
    names, site = memory(hard).keys(), bounded_sites(hard)["1"]
    half = site.upper / 2
    site.upper = half
    assert torch.equal(site.upper, half)
    site.rescale()
    assert memory(hard).keys() == names
    assert bool((site.upper >= half).all())
    assert bool((site.upper <= half + half.max() / 120).all())


@pytest.mark.parametrize(
    ("stored", "name"), [("int8", "1.upper_uint8"), ("int8", "1.upper_scale"), ("bfloat16", "1.upper_bfloat16")]
)
def test_a_file_with_other_words_is_refused(stored: str, name: str, tmp_path) -> None:
    path = tmp_path / "bounds"
    fitact_fx.save(packed(stored), path)
    with safe_open(path, "pt") as file:
        recipe = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].double()}, path, recipe)
    with pytest.raises(RecipeError, match="are no words of bounds"):
        fitact_fx.load(path, network())
    if stored == "bfloat16":
        save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path, recipe)
        with pytest.raises(SiteError, match="a bound is NaN"):
            fitact_fx.load(path, network())
