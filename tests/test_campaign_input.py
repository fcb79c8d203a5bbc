"""What a campaign is given: refused by name where it cannot be measured, and measured where it can be, however odd."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_campaigns import Small, campaign_data, campaign_variants, untimed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx import run_campaign
from fitact_fx.campaigns import SingleFaults
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip, Burst


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return campaign_data()


@pytest.fixture
def variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    return campaign_variants(data)


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no variants": (lambda v, d: run_campaign({}, d, BitFlip, [1e-3]), "no variants"),
    "no model": (lambda v, d: run_campaign({"a": 3}, d, BitFlip, [1e-3]), "'a' is a int and not an nn.Module"),  # type: ignore[dict-item]
    "empty data": (lambda v, d: run_campaign(v, [], BitFlip, [1e-3]), "nothing to measure on"),
    "no question": (lambda v, d: run_campaign(v, d, BitFlip), "how often faults strike"),
    "two questions": (lambda v, d: run_campaign(v, d, BitFlip(count=1), [1e-3]), "says itself how often"),
    "two kinds": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], kind=SingleFaults()), "both rates and a kind"),
    "bad rate": (lambda v, d: run_campaign(v, d, BitFlip, [2.0]), "between 0 and 1"),
    "same rate": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3, 1e-3]), "each once"),
    "no trials": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], trials=0), "trials is a whole number from 1 up"),
    "until": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], until=1.5), "0.01 for"),
    "measure": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], measure="iou"), "no 'iou' to measure"),
    "format": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], format="float99"), "float99"),
    "workers": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], workers=0), "workers"),
    "needs more": (lambda v, d: run_campaign(v, d, Burst, [1e-3]), "functools.partial"),
    "sites without at": (lambda v, d: run_campaign(v, d, kind=SingleFaults(per="site"), trials=2), 'add at="'),
    "unshared": (
        lambda v, d: run_campaign(v, d, kind=SingleFaults(), targets=["bounds"], trials=2),
        "the model has no bounds",
    ),
    "shape": (
        lambda v, d: run_campaign({**v, "wide": Small(7)}, d, BitFlip, [1e-3]),
        "outputs of different shapes",
    ),
    "labels": (lambda v, d: run_campaign(v, (d[0], d[1] + 90), BitFlip, [1e-3]), "is none of 5 classes"),
    "rates no list": (lambda v, d: run_campaign(v, d, BitFlip, 1e-3), "rates are numbers"),  # type: ignore[arg-type]
    "kind no value": (lambda v, d: run_campaign(v, d, kind="single"), "give a value, such as"),  # type: ignore[arg-type]
    "kind no instance": (lambda v, d: run_campaign(v, d, kind=SingleFaults), "give a value"),  # type: ignore[arg-type]
    "name no text": (lambda v, d: run_campaign({1: v["plain"]}, d, BitFlip, [1e-3]), "called 1"),  # type: ignore[dict-item]
    "no mapping": (lambda v, d: run_campaign(v["plain"], d, BitFlip, [1e-3]), "variants is a Small"),
    "metric's name": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], metrics={"rate": max}), "called 'rate'"),
    "metric no function": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], metrics={"a": 3}), "no function"),  # type: ignore[dict-item]
    "metrics no mapping": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], metrics=[max]), "by name"),  # type: ignore[arg-type]
    "until no number": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], until="0.1"), "0.01 for"),  # type: ignore[arg-type]
    "confidence": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], confidence="0.9"), "between 0 and 1"),  # type: ignore[arg-type]
    "where": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], where="behind"), "one of after, before"),
    "inputs": (
        lambda v, d: run_campaign(v, (d[0][:, :, 0], d[1]), BitFlip, [1e-3]),
        "variant 'plain' raised RuntimeError on batch 0",
    ),
    "folder": (lambda v, d: run_campaign(v, d, BitFlip, [1e-3], store="/nowhere/run.db"), "no folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(name: str, data: Any, variants: dict[str, nn.Module]) -> None:
    call, words = REFUSED[name]
    with pytest.raises(fitact_fx.FitactError) as error:
        call(variants, data)
    assert words in str(error.value)


def test_a_model_that_is_random_is_refused(data: Any) -> None:
    class Noisy(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(1)

    with pytest.raises(CampaignError, match="does not give the same output twice"):
        run_campaign({"noisy": Noisy()}, data, BitFlip, [1e-3])


def test_targets_that_cannot_be_transient_are_refused_before_anything_runs(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    with pytest.raises(fitact_fx.FitactError, match="is no activation"):
        run_campaign(
            variants, data, BitFlip, [1e-3], at="*", permanent=False, targets=["parameters"], store=path, trials=2
        )
    assert not path.exists()


def test_a_metric_that_raises_in_one_trial_is_recorded_and_the_campaign_goes_on(
    data: Any, variants: dict[str, nn.Module]
) -> None:
    calls = []

    def moody(outputs: Tensor, targets: Tensor) -> float:
        calls.append(len(outputs))
        if len(calls) == 5:
            raise ZeroDivisionError("not today")
        return float(outputs.abs().max() < 1e30)

    result = run_campaign(
        {"plain": variants["plain"]}, data, BitFlip, [1e-3], trials=12, metrics={"small": moody}, skip=False
    )
    assert [row.trial for row in result.rows] == list(range(12))
    ((variant, cell, _, message),) = result.errors
    assert (variant, cell) == ("plain", "0.001")
    assert "metric 'small' raised ZeroDivisionError: not today" in message
    assert len(result.values("plain", "0.001", "small")) == 11
    assert len(result.values("plain", "0.001")) == 12


def test_a_metric_that_draws_and_a_loader_that_shuffles_leave_the_random_state(
    data: Any, variants: dict[str, nn.Module]
) -> None:
    def drawn(outputs: Tensor, targets: Tensor) -> float:
        return float(torch.rand(())) + random.random()

    state = torch.get_rng_state(), random.getstate()
    loader = DataLoader(TensorDataset(*data), batch_size=16)
    one, other = (run_campaign(variants, loader, BitFlip, [1e-3], trials=4, metrics={"drawn": drawn}) for _ in range(2))
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    assert untimed(one) == untimed(other)


def test_a_network_that_raises_under_a_fault_has_noticed_it(data: Any) -> None:
    class Wary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            if not bool((y.abs() < 50).all()):
                raise OverflowError("logits beyond anything seen")
            return y

    torch.manual_seed(0)
    result = run_campaign({"wary": Wary().eval()}, data, BitFlip, [1e-3], trials=10)
    crashed = [row for row in result.rows if row.error]
    assert crashed
    assert all((row.due, row.accuracy, row.sdc1) == (1.0, 0.0, 0.0) for row in crashed)
    assert "OverflowError: logits beyond anything seen" in str(crashed[0].error)


def test_regression_is_measured_by_the_users_metric(data: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1))
    targets = torch.randn(40, 1)

    def error(outputs: Tensor, wanted: Tensor) -> Tensor:
        return (outputs - wanted).abs().clamp(max=1).mean()

    result = run_campaign({"net": model}, (data[0], targets), BitFlip, [1e-3], trials=5, metrics={"distance": error})
    assert all(row.accuracy is None and "distance" in row.metrics for row in result.rows)
    with torch.no_grad():
        faults = BitFlip(rate=1e-3).draw(model, "q15.16", 0, 4)
        with faults.applied(model):
            assert result.values("net", "0.001", "distance")[4] == pytest.approx(float(error(model(data[0]), targets)))


def test_a_class_in_eight_bits_is_not_taken_for_no_label() -> None:
    model = nn.Linear(4, 200).eval()
    labels = (torch.arange(40) + 140).to(torch.uint8)
    result = run_campaign({"net": model}, (torch.randn(40, 4), labels), BitFlip, [1e-3], trials=1)
    assert result.settings["labelled"] == 40
    assert result.settings["variants"]["net"]["clean"]["accuracy"] * 40 == pytest.approx(
        round(result.settings["variants"]["net"]["clean"]["accuracy"] * 40)
    )


def test_an_answer_that_is_not_finite_is_not_right_without_faults_either() -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight) / (x[:, :1] != 9)

    inputs = torch.tensor([[2.0, 1.0], [9.0, 1.0]])
    result = run_campaign({"net": Endless()}, (inputs, torch.tensor([0, 0])), BitFlip, [1e-3], trials=1)
    assert result.settings["variants"]["net"]["clean"]["accuracy"] == 0.5
