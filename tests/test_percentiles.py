"""Percentiles against NumPy's, within the stated resolution, and what calibration refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.granularity import Layer, named
from fitact_fx.hardening import bound_sites
from fitact_fx.percentiles import BINS
from fitact_fx.policies import Clamp
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.spec import Spec
from fitact_fx.tracing import trace

SIZES = (5, 1, 8, 3, 7)


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 4, 6, 6, generator=generator) ** 3 for size in SIZES]


def by_granularity(values: np.ndarray, granularity: str) -> np.ndarray:
    """One row of values for each bound."""
    order = {"layer": (1, -1), "channel": (4, -1), "neuron": (144, -1)}[granularity]
    moved = values if granularity == "layer" else np.moveaxis(values.reshape(len(values), 4, 36), 0, -1)
    return moved.reshape(order)


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("percentile", [100.0, 99.9, 97, 90.0, 55.0])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.5)], ids=("one-sided", "two-sided"))
def test_bounds_are_numpys_percentiles_within_the_resolution(
    granularity: str, percentile: float, activation: nn.Module
) -> None:
    two_sided = isinstance(activation, nn.LeakyReLU)
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), activation).eval()
    scheme = Ranger(granularity=granularity, percentile=percentile)
    hard = fitact_fx.harden(model, scheme=scheme, data=batches(), max_drop=0.99)
    with torch.no_grad():
        rows = by_granularity(model(torch.cat(batches())).numpy(), granularity)
    lower, upper = fitact_fx.bounds(hard)["1"]
    resolution = (rows.max(1) - rows.min(1)) / BINS * (1 + 1e-4)
    assert upper is not None
    # The least value that has at least that share of the values at it or below.
    expected = np.percentile(rows, percentile, axis=1, method="inverted_cdf")
    got = upper.numpy().reshape(-1)
    assert (got >= expected).all()
    assert (got <= expected + resolution).all()
    assert ((rows <= got[:, None]).mean(1) >= percentile / 100).all()
    assert (lower is not None) is two_sided
    if lower is not None:
        expected = -np.percentile(-rows, percentile, axis=1, method="inverted_cdf")
        got = lower.numpy().reshape(-1)
        assert (got <= expected).all()
        assert (got >= expected - resolution).all()
        assert ((rows >= got[:, None]).mean(1) >= percentile / 100).all()


def test_numpys_own_interpolated_percentile_is_met_on_much_data() -> None:
    values = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(3)).abs()
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Ranger(percentile=99.0), data=list(values.split(3_000)))
    upper = float(fitact_fx.bounds(hard)["0"][1])  # type: ignore[arg-type]
    assert abs(upper - np.percentile(values.numpy(), 99.0)) <= float(values.max()) / BINS * (1 + 1e-4)


def test_a_shuffling_loader_gives_the_bounds_of_any_other_order() -> None:
    samples = torch.cat(batches())
    model = nn.Sequential(nn.ReLU())
    shuffled = DataLoader(TensorDataset(samples), batch_size=7, shuffle=True)
    found = [
        fitact_fx.bounds(fitact_fx.harden(model, scheme=Ranger(percentile=95.0), data=data, max_drop=0.5))
        for data in ([samples], shuffled)
    ]
    assert found[0]["0"][1] == found[1]["0"][1]


def test_constant_values_have_themselves_as_every_percentile() -> None:
    hard = fitact_fx.harden(nn.Sequential(nn.Tanh()), scheme=Ranger(percentile=60.0), data=[torch.ones(4, 3)])
    lower, upper = fitact_fx.bounds(hard)["0"]
    assert lower == upper == torch.ones(()).tanh()


def test_a_share_is_taken_of_both_bounds_behind_the_percentile() -> None:
    found = []
    for share in (1.0, 0.25):
        graph_module = trace(nn.Sequential(nn.LeakyReLU()))
        spec = Spec(named("channel"), Clamp(), percentile=90.0, share=share)
        hard = bound_sites(graph_module, {"0": spec})
        fitact_fx.calibrate(hard, [torch.randn(50, 3, generator=torch.Generator().manual_seed(4))])
        found.append(fitact_fx.bounds(hard)["0"])
    for whole, part in zip(*found, strict=True):
        assert torch.equal(whole * 0.25, part)  # type: ignore[operator, arg-type]


class Changing:
    """Data that are others the second time."""

    def __init__(self, *times: list[Tensor]) -> None:
        self.times = iter(times)

    def __iter__(self):
        return iter(next(self.times))


@pytest.mark.parametrize(
    ("second", "said"),
    [([torch.full((4, 3), 2.0)], "values beyond those of the first"), ([torch.ones(2, 3)], "more or fewer values")],
)
def test_other_data_in_the_second_pass_are_refused_and_no_bound_changes(second: list[Tensor], said: str) -> None:
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Ranger(percentile=90.0), data=[torch.rand(9, 3)])
    before = fitact_fx.bounds(hard)["0"][1]
    with pytest.raises(CalibrationError, match=rf"^site 0 .*\n  in the second pass .*{said}"):
        fitact_fx.calibrate(hard, Changing([torch.ones(4, 3)], second))
    assert fitact_fx.bounds(hard)["0"][1] == before


def test_more_counters_than_memory_are_refused() -> None:
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(CalibrationError, match=r'GiB of counters;\n  harden with granularity="layer"'):
        fitact_fx.harden(model, scheme=Ranger("neuron", percentile=99.0), data=[torch.rand(1, 2**18)])


def test_a_percentile_that_leaves_nothing_between_two_sides_is_refused() -> None:
    with pytest.raises(CalibrationError, match="percentile 30 leaves nothing between"):
        fitact_fx.harden(nn.Sequential(nn.Tanh()), scheme=Ranger(percentile=30), data=batches())


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan"), float("inf"), "99", None, True])
def test_a_percentile_outside_of_0_to_100_is_refused_where_the_scheme_is_made(percentile: object) -> None:
    with pytest.raises(RecipeError, match=r"^percentile is .*;\n  give a number above 0, 100 at most$"):
        Ranger(percentile=percentile)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0, 1.5, float("nan"), "all"])
def test_a_share_outside_of_0_to_1_is_refused(share: object) -> None:
    with pytest.raises(RecipeError, match=r"^share is .*;\n  give a number above 0, 1 at most$"):
        Spec(Layer(), Clamp(), share=share)  # type: ignore[arg-type]
