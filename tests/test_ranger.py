"""Ranger against a clamp written in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.errors import RecipeError
from fitact_fx.schemes.ranger import Ranger


def tiny(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3)).eval()


def hardened(model: nn.Module, data: Tensor) -> nn.Module:
    hard = fitact_fx.harden(model, scheme="ranger")
    fitact_fx.calibrate(hard, [data])
    return hard


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.LeakyReLU()], ids=lambda each: type(each).__name__)
def test_a_value_beyond_the_profiled_range_becomes_its_end(activation: nn.Module) -> None:
    model, generator = tiny(activation), torch.Generator().manual_seed(1)
    data = torch.randn(50, 4, generator=generator)
    hard, wild = hardened(model, data), 20 * torch.randn(50, 4, generator=generator)
    with torch.no_grad():
        seen, values = model[:2](data).numpy(), model[:2](wild).numpy()
        got = hard(wild).numpy()
    # A one-sided kind has its own least value below, which its values cannot leave.
    clamped = np.clip(values, seen.min(), seen.max())
    weight, bias = (p.detach().numpy() for p in model[2].parameters())
    # Values within the slack (2^-10 of the bound and its scale) may pass as they are.
    slack = 2 * 2.0**-10 * np.abs(seen).max() * np.abs(weight).sum()
    np.testing.assert_allclose(got, clamped @ weight.T + bias, atol=slack, rtol=0)
    assert np.abs(values @ weight.T + bias - got).max() > 10 * slack, "nothing was clamped: the test shows nothing"


def test_pooling_after_a_clamp_stays_inside_the_bounds() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    data = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(2))
    hard = fitact_fx.harden(model, scheme=Ranger(follow=False), data=[data])
    ((_, upper),) = fitact_fx.bounds(hard).values()
    assert upper is not None
    assert hard(1e6 * data).max() <= upper * (1 + 2.0**-9)


def test_every_site_has_one_bound_and_nothing_is_learned() -> None:
    hard = hardened(tiny(nn.ReLU()), torch.ones(2, 4))
    assert {name: upper.shape for name, (_, upper) in fitact_fx.bounds(hard).items() if upper is not None} == {"1": ()}
    with pytest.raises(RecipeError) as caught:
        fitact_fx.post_train(hard, [torch.ones(2, 4)])
    assert str(caught.value) == (
        "ranger learns nothing: its bounds are the ranges that fitact_fx.calibrate saw;\n"
        '  leave post_train out, or harden with scheme="fitact"'
    )


def test_another_granularity_is_an_option() -> None:
    hard = fitact_fx.harden(tiny(nn.ReLU()), scheme=Ranger(granularity="neuron"))
    fitact_fx.calibrate(hard, [torch.ones(2, 4)])
    ((_, upper),) = fitact_fx.bounds(hard).values()
    assert upper is not None
    assert upper.shape == (1, 6)
