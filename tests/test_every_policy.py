"""What every hard policy promises, and what each does beyond a bound, against NumPy loops over samples and channels."""

import math

import numpy as np
import pytest
import torch

from fitact_fx import policies
from fitact_fx.policies import Bounds, at_dim, scale_of

EVERY = policies.names()
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Shapes of activations, and the dimension that holds their channels.
SHAPES = {(4, 6): 1, (3, 6, 5): 1, (3, 5, 6): -1, (3, 6, 4, 5): 1}
FAULTS = [math.nan, math.inf, -math.inf, 1.5, 2.5, 900.0, -0.4, -900.0, 3e4]


def told(name, dim):
    return at_dim(policies.named(name), dim)


def activations(shape, dtype, faulty=True):
    """Values in [0, 1]; where faulty, the last sample is beyond its bound everywhere and the one before nowhere."""
    generator = np.random.default_rng(0)
    values = generator.random(shape)
    if faulty:
        spoilt = generator.random(shape) < 0.25
        values[spoilt] = generator.choice([*FAULTS, 1e30 if dtype == torch.float32 else 6e4], int(spoilt.sum()))
        values[-2], values[-1] = generator.random(shape[1:]), 7.0
    return torch.from_numpy(values).to(dtype)


def bounds_of(lower, upper, minimum=0.0, dtype=torch.float32):
    sides = [None if side is None else torch.tensor(side, dtype=torch.float64).to(dtype) for side in (lower, upper)]
    return Bounds(*sides, minimum, scale_of(*sides))


def beyond(x, upper, dtype):
    """Which values are beyond [0, upper], widened by the documented slack, or NaN."""
    room = 1.25 * max(2.0**-10, 8 * torch.finfo(dtype).eps)
    return ~((x >= 0) & (x <= upper * (1 + room)))


# One oracle a policy: from the values (double), which of them are beyond, and the upper bound, for [0, upper].


def zero(x, bad, upper, dim):
    return np.where(bad, 0.0, x)


def clamp(x, bad, upper, dim):
    return np.where(np.isnan(x), 0.0, np.where(bad, np.clip(x, 0.0, upper), x))


def backflip(x, bad, upper, dim):
    result = x.copy()
    for place in zip(*np.nonzero(bad), strict=True):
        value = x[place]
        steps = [(2.0**64 * upper, 0.0), (2 * upper, min(2.0, upper)), (upper, upper)]
        result[place] = next((by for threshold, by in steps if value >= threshold), 0.0)
    return result


def rescale(x, bad, upper, dim):
    result = x.copy()
    for sample, wrong, out in zip(x, bad, result, strict=True):
        channels = [...] if sample.ndim == 1 else range(sample.shape[dim - (dim > 0)])
        for channel in channels:
            taken = channel if channel is ... else (slice(None),) * (dim % x.ndim - 1) + (channel,)
            least, most = sample[taken].min(), sample[taken].max()
            for place in zip(*np.nonzero(wrong[taken]), strict=True):
                value = sample[taken][place]
                share = 1.0 if most == least else (value - least) / (most - least)
                out[taken][place] = upper * share if value > upper else 0.0
    return result


def average(x, bad, upper, dim):
    first, wrong = np.moveaxis(x, dim, 1).copy(), np.moveaxis(bad, dim, 1)
    for sample, spoilt in zip(first, wrong, strict=True):
        healthy = [one.copy() for one, is_bad in zip(sample, spoilt, strict=True) if not is_bad.any()]
        mean = sum(healthy) / len(healthy) if healthy else np.zeros(sample.shape[1:])
        for place, is_bad in enumerate(spoilt):
            sample[place] = np.where(is_bad, mean, sample[place])
    return np.moveaxis(first, 1, dim)


ORACLES = {oracle.__name__: oracle for oracle in (zero, clamp, backflip, rescale, average)}


def test_every_policy_has_an_oracle():
    assert set(EVERY) == set(ORACLES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("upper", [1.0, 3.0])
@pytest.mark.parametrize("name", EVERY)
def test_every_value_is_what_the_oracle_says(name, upper, dtype, shape):
    dim, values = SHAPES[shape], activations(shape, dtype)
    got = told(name, dim)(values, bounds_of(None, upper, dtype=dtype)).double().numpy()
    limits = torch.finfo(dtype)
    x = values.double().numpy()
    bad = beyond(x, upper, dtype)
    # NaN counts as 0 and an infinity as the greatest number, also in a map's extremes.
    numbers = x if name == "zero" else np.nan_to_num(x, nan=0.0, posinf=limits.max, neginf=limits.min)
    flipped = np.where(np.isposinf(x), np.inf, numbers) if name == "backflip" else numbers
    wanted = ORACLES[name](flipped, bad, upper, dim)
    wanted = np.where(np.isnan(x), 0.0, wanted)
    np.testing.assert_allclose(got[bad], wanted[bad], rtol=4 * limits.eps, atol=4 * limits.eps)
    assert (got[~bad] == x[~bad]).all()
    assert bad.any(), "nothing was beyond its bound"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_clean_values_stay_as_they_are_bit_for_bit(name, dtype, shape):
    values = activations(shape, dtype, faulty=False)
    got = told(name, SHAPES[shape])(values, bounds_of(None, 1.0, dtype=dtype))
    assert got.dtype == dtype
    assert got.double().numpy().tobytes() == values.double().numpy().tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_is_not_finite_passes_whatever_the_bounds_are(name, dtype):
    limits, nan = torch.finfo(dtype), math.nan
    values = activations((3, 6, 4, 5), dtype)
    values[0, 0], values[0, 1], values[0, 2, 0, 0], values[0, 2, 0, 1] = nan, math.inf, limits.max, limits.min
    sides = [(None, 1.0), (-0.1, 1.0), (0.5, 1.0), (-1.0, None), (-2.0, -1.0), (0.0, 0.0), (None, limits.max)]
    sides += [(limits.min, limits.max), (None, nan), (nan, 1.0), (-1.0, nan), (nan, nan)]
    for lower, upper in sides:
        for minimum in (0.0, -math.inf):
            got = told(name, 1)(values, bounds_of(lower, upper, minimum, dtype))
            assert got.isfinite().all(), (lower, upper, minimum)
            if name != "zero" and upper == upper and lower is not None and lower == lower:
                low, high = bounds_of(lower, upper, minimum, dtype).limits(dtype)
                assert (((got >= low) & (got <= high)) | values.isnan()).all(), (lower, upper, minimum)


@pytest.mark.parametrize("name", EVERY)
def test_infinite_bounds_only_make_nan_zero(name):
    values = activations((3, 6, 4, 5), torch.float32)
    for lower, upper in [(None, math.inf), (-math.inf, math.inf), (-math.inf, None)]:
        got = told(name, 1)(values, bounds_of(lower, upper, -math.inf))
        assert torch.equal(got, torch.where(values.isnan(), 0.0, values))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_what_becomes_of_a_sample_does_not_depend_on_the_others(name, shape):
    policy, bounds, values = told(name, SHAPES[shape]), bounds_of(None, 1.0), activations(shape, torch.float32)
    alone = torch.cat([policy(sample[None], bounds) for sample in values])
    assert torch.equal(policy(values, bounds), alone)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_of_a_value_inside_is_its_own_and_every_gradient_is_finite(name):
    values = activations((3, 6, 4, 5), torch.float32).requires_grad_()
    told(name, 1)(values, bounds_of(None, 1.0)).sum().backward()
    inside = ~beyond(values.detach().double().numpy(), 1.0, torch.float32)
    assert (values.grad.numpy() == inside).all()


def test_each_neuron_is_brought_inside_its_own_bound():
    upper = torch.tensor([[[0.1, 2.0], [3.0, 4.0]]])
    values = torch.tensor([[[9.0, 1.0], [1.0, 3.0]]])
    got = {name: told(name, 1)(values, Bounds(None, upper, 0.0, 4.0)).tolist()[0] for name in EVERY}
    wanted = {name: [[0.0 if name == "zero" else pytest.approx(0.1), 1.0], [1.0, 3.0]] for name in EVERY}
    assert got == wanted
