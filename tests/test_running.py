"""Campaigns end to end, against loops written by hand: their rows, what they leave behind, when they stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_campaigns import RATES, batches, campaign_data, campaign_variants, values
from torch import Tensor, nn

from fitact_fx import run_campaign
from fitact_fx.campaigns import Draws, SingleFaults
from fitact_fx.campaigns.evaluating import Evaluator
from fitact_fx.faults import BitFlip, FaultList


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return campaign_data()


@pytest.fixture
def variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    return campaign_variants(data)


def test_a_rate_sweep_gives_what_a_loop_over_the_same_draws_gives(data: Any, variants: dict[str, nn.Module]) -> None:
    result = run_campaign(variants, batches(data), BitFlip, RATES, trials=6, format="float32", seed=3)
    with torch.no_grad():
        for row in result.rows:
            model = variants[row.variant]
            clean = torch.cat([model(x) for x, _ in batches(data)]).numpy()
            faults = BitFlip(rate=float(row.cell)).draw(model, "float32", 3, row.trial)
            with faults.applied(model):
                faulty = torch.cat([model(x) for x, _ in batches(data)]).numpy()
            labels = data[1].numpy()
            broken = ~np.isfinite(faulty).all(1)
            answers = np.where(np.isnan(faulty), np.inf, faulty).argmax(1)
            trusted = np.isfinite(faulty[np.arange(40), answers])
            right = clean.argmax(1) == labels
            silent = right & ~broken & (answers != clean.argmax(1))
            assert row.accuracy == ((answers == labels) & trusted).mean()
            assert row.due == broken.mean()
            assert row.sdc1 == silent.sum() / right.sum()
            assert (row.faults, row.checksum) == (len(faults), faults.checksum)
    assert len(result.rows) == 2 * 2 * 6
    assert any(row.due for row in result.rows)
    assert any(row.sdc1 for row in result.rows)


def test_all_variants_get_the_same_faults_in_what_they_share(data: Any, variants: dict[str, nn.Module]) -> None:
    result = run_campaign(variants, data, kind=SingleFaults(), trials=20)
    checksums: dict[int, set[str]] = {}
    for row in result.rows:
        checksums.setdefault(row.trial, set()).add(row.checksum)
    assert len(checksums) == 20
    assert all(len(each) == 1 for each in checksums.values())


def test_the_model_its_modes_and_the_random_state_are_as_before(data: Any, variants: dict[str, nn.Module]) -> None:
    model = variants["plain"].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run_campaign(variants, data, BitFlip, [1e-3], trials=4, threads=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not variants["hard"].training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_everything_is_as_before_after_an_interrupt_in_the_middle(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trial, runs = variants["plain"].train(), Evaluator.trial, []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()

    def interrupted(self: Evaluator, faults: FaultList, *, transient: bool) -> Any:
        runs.append(faults)
        if len(runs) == 4:
            with faults.applied(self.memory):
                raise KeyboardInterrupt
        return trial(self, faults, transient=transient)

    monkeypatch.setattr(Evaluator, "trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_campaign(variants, data, BitFlip, [1e-3], trials=40, store=tmp_path / "run.db")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    result = run_campaign(variants, data, BitFlip, [1e-3], trials=40, store=tmp_path / "run.db")
    assert len(result.rows) == 80


def test_another_seed_gives_other_draws(data: Any, variants: dict[str, nn.Module]) -> None:
    one, other = (run_campaign(variants, data, BitFlip, [1e-3], trials=3, seed=seed) for seed in (0, 1))
    assert {row.checksum for row in one.rows}.isdisjoint(row.checksum for row in other.rows)


def test_a_cell_stops_when_it_knows_enough(data: Any, variants: dict[str, nn.Module]) -> None:
    full = run_campaign(variants, data, BitFlip, [1e-3], trials=120)
    stopped = run_campaign(variants, data, BitFlip, [1e-3], trials=120, until=0.1, minimum=10)
    for variant in variants:
        some = stopped.values(variant, "0.001")
        assert 10 <= len(some) <= 120
        assert np.array_equal(some, full.values(variant, "0.001")[: len(some)])
        assert stopped.stopped(variant, "0.001") == (len(some) < 120)
        if len(some) < 120:
            assert stopped.interval(variant, "0.001").half_width <= 0.1
    assert any(stopped.stopped(variant, "0.001") for variant in variants)


def test_transient_faults_hit_each_batch_with_its_own_part(data: Any, variants: dict[str, nn.Module]) -> None:
    asked: dict[str, Any] = {"rates": [3e-3], "trials": 3, "at": "*", "permanent": False}
    small = run_campaign(variants, batches(data, 7), **asked)
    whole = run_campaign(variants, batches(data, 40), **asked)
    for one, other in zip(small.rows, whole.rows, strict=True):
        assert one.checksum == other.checksum
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.03)  # batches round apart
    assert any(row.accuracy < 0.7 for row in whole.rows if row.accuracy is not None)


def test_one_condition_of_a_fault_model_that_says_how_often_it_strikes(
    data: Any, variants: dict[str, nn.Module]
) -> None:
    result = run_campaign(variants, data, BitFlip(count=3), trials=5)
    assert {row.faults for row in result.rows} == {3}
    assert values(result) == values(run_campaign(variants, data, kind=Draws(BitFlip(count=3)), trials=5))
