"""Bounds at every place: what passes them, what they write, and how they are calibrated, saved and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from small_models import INFINITE, bitwise_equal, module, run
from test_places import CASES, IMAGES, PLACES, Block, Cnn, X
from torch import Tensor, nn

import fitact_fx
from fitact_fx import harden, set_bounds
from fitact_fx.bounded import Bounded
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.sites import SiteRule


def residual_views(self: nn.Module, x: Tensor) -> Any:
    y = x * 2
    half, rest = y[:, :2], y[:, 2:]
    half += x[:, :2]
    rest.add_(half.relu())
    return y, half.relu(), y.t().add_(y.t() * 2), x


def residual_in_the_input(self: nn.Module, x: Tensor) -> Any:
    x += x * 2
    y = x.view(-1)
    y += x.reshape(-1).relu()
    return x, y


def residual_and_inplace_activations(self: nn.Module, x: Tensor) -> Any:
    y = F.relu(x * 3, inplace=True)
    y += x
    F.leaky_relu(y, 0.1, inplace=True)
    z = y
    z += y.sigmoid()
    y.add_(x, alpha=2)
    return y, z


class TestValues:
    @pytest.mark.parametrize("forward", [residual_views, residual_in_the_input, residual_and_inplace_activations])
    @pytest.mark.parametrize("sites", ["residual", PLACES, ("residual", "activations")])
    def test_sums_in_place_write_where_the_model_writes(self, forward: Callable[..., Any], sites: SiteRule) -> None:
        model = module(forward)
        hard = harden(model, "layer", sites=sites)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))

    @pytest.mark.parametrize(("make", "inputs", "expected"), CASES, ids=["cnn", "block"])
    @pytest.mark.parametrize("place", PLACES)
    def test_a_finite_bound_holds_at_each(
        self, make: Callable[[], nn.Module], inputs: Tensor, expected: dict[str, list[str]], place: str
    ) -> None:
        hard = harden(make().eval(), "layer", Ranger(follow=False), sites=place)
        assert list(fitact_fx.bounds(hard)) == expected[place]
        set_bounds(hard, {"*": (-0.01, 0.01)})
        seen: dict[str, Tensor] = {}
        for each in hard.modules():
            if isinstance(each, Bounded):
                each.register_forward_hook(lambda bounded, _, output: seen.update({bounded.site: output.clone()}))
        run(hard, (inputs * 100,))
        assert list(seen) == expected[place]
        assert all(values.abs().max() <= 0.010001 for values in seen.values())

    def test_other_readers_of_a_bounded_sum_get_it_bounded(self) -> None:
        hard = harden(module(residual_views), "layer", "ranger", sites="residual")
        set_bounds(hard, {"*": (-0.5, 0.5)})
        y, half, _, _ = run(hard, (X,))[:4]
        assert y.abs().max() <= 0.5
        assert half.max() <= 0.5

    @pytest.mark.parametrize("granularity", ["neuron", "channel", "layer"])
    @pytest.mark.parametrize(("make", "inputs", "expected"), CASES, ids=["cnn", "block"])
    def test_everything_is_calibrated_saved_and_loaded(
        self, make: Callable[[], nn.Module], inputs: Tensor, expected: object, granularity: str, tmp_path: Path
    ) -> None:
        model = make().eval()
        chosen = {"*": granularity} | (
            {"softmax": "layer", "matmul*": "layer", "add*": "layer"} if make is Block else {}
        )
        hard = harden(model, chosen, sites=PLACES)
        fitact_fx.calibrate(hard, [inputs])
        assert fitact_fx.verify(model, hard, inputs)
        fitact_fx.save(hard, tmp_path / "bounds")
        loaded = fitact_fx.load(tmp_path / "bounds", model)
        assert list(fitact_fx.bounds(loaded)) == list(fitact_fx.bounds(hard))
        assert bitwise_equal(run(loaded, (inputs * 50,)), run(hard, (inputs * 50,)))

    def test_linear_sites_alone_are_saved_and_loaded(self, tmp_path: Path) -> None:
        model = Cnn().eval()
        hard = harden(model, sites="linear")
        fitact_fx.calibrate(hard, [IMAGES])
        fitact_fx.save(hard, tmp_path / "bounds")
        loaded = fitact_fx.load(tmp_path / "bounds", model)
        assert list(fitact_fx.bounds(loaded)) == ["conv1", "conv2", "fc"]
