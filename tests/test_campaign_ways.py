"""Compiled, in workers, by suffixes: the ways in which trials are run, and what they must not change."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from small_campaigns import RATES, batches, campaign_data, campaign_variants, untimed, values
from torch import Tensor, nn

from fitact_fx import run_campaign
from fitact_fx.campaigns import Exhaustive, SingleFaults
from fitact_fx.campaigns.evaluating import Evaluator, How
from fitact_fx.campaigns.samples import Samples
from fitact_fx.faults import BitFlip, Burst, StuckAt
from fitact_fx.tracing import trace


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return campaign_data()


@pytest.fixture
def variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    return campaign_variants(data)


ASKED: dict[str, dict[str, Any]] = {
    "rates": {"rates": RATES, "trials": 8},
    "float32": {"rates": RATES, "trials": 8, "format": "float32"},
    "stuck": {"fault": partial(StuckAt, value=0), "kind": SingleFaults(), "trials": 30},
    "per tensor": {"kind": SingleFaults(per="tensor"), "trials": 6},
    "per bit": {"kind": SingleFaults(per="bit"), "trials": 3, "format": "bfloat16", "cast": torch.bfloat16},
    "per site": {"kind": SingleFaults(per="site"), "trials": 6, "at": "*"},
    "transient": {"rates": [1e-3], "trials": 6, "at": "*", "permanent": False},
    "exhaustive": {"kind": Exhaustive(bits=[30]), "targets": ["parameters:last.*"]},
    "draws": {"fault": Burst(width=3, count=2), "trials": 10},
    "buffers": {"rates": RATES, "trials": 6, "targets": ["buffers", "parameters"]},
}


@pytest.mark.parametrize("name", ASKED)
def test_suffixes_and_skipping_change_no_value(name: str, data: Any, variants: dict[str, nn.Module]) -> None:
    asked = dict(ASKED[name])
    cast = asked.pop("cast", torch.float32)
    models = {key: model.to(cast) for key, model in variants.items()}
    cut = [(x.to(cast), y) for x, y in batches(data)]
    quick = run_campaign(models, cut, **asked)
    scarce = run_campaign(models, cut, **asked, suffix_memory=5000)
    slow = run_campaign(models, cut, **asked, suffixes=False, skip=False)
    assert values(quick) == values(scarce) == values(slow)
    assert {row.way for row in slow.rows} == {"whole"}
    assert any(row.way != "whole" for row in quick.rows)


@pytest.mark.parametrize("asked", ["rates", "per site"])
def test_the_rows_do_not_depend_on_who_ran_them(asked: str, data: Any, variants: dict[str, nn.Module]) -> None:
    here = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3)
    forked = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3, workers=2)
    with ThreadPoolExecutor(2) as pool:
        threaded = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3, executor=pool)
    assert untimed(here) == untimed(forked) == untimed(threaded)
    assert torch.backends.mha.get_fastpath_enabled()  # threads set it back in any order


def test_spawned_workers_and_threads_get_copies_of_their_own(data: Any, variants: dict[str, nn.Module]) -> None:
    here = run_campaign(variants, data, BitFlip, RATES, trials=4)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        spawned = run_campaign(variants, data, BitFlip, RATES, trials=4, executor=pool)
    assert untimed(here) == untimed(spawned)


def test_compiled_networks_go_to_forked_workers(data: Any, variants: dict[str, nn.Module], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rates": RATES, "trials": 6, "compile": True, "suffixes": False}
    here = run_campaign(variants, batches(data), **asked)
    forked = run_campaign(variants, batches(data), **asked, workers=2)
    assert untimed(here) == untimed(forked)


def test_compiled_trials_agree_with_eager_ones_and_are_compiled_once(data: Any, variants: dict[str, nn.Module]) -> None:
    torch._dynamo.reset()
    eager = run_campaign(variants, batches(data), BitFlip, RATES, trials=6)
    compiled = run_campaign(variants, batches(data), BitFlip, RATES, trials=6, compile=True, suffixes=False)
    for one, other in zip(eager.rows, compiled.rows, strict=True):
        assert one.checksum == other.checksum
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.05)  # a tie may fall the other way
    again = run_campaign(variants, batches(data), BitFlip, RATES, trials=6, compile=True, suffixes=False)
    assert values(again) == values(compiled)


def test_what_is_kept_and_so_the_way_of_each_trial_is_the_same_in_every_process(
    data: Any, variants: dict[str, nn.Module]
) -> None:
    how = How(compile=True, suffix_memory=6000)
    model = trace(variants["plain"])
    weights = dict.fromkeys(dict(variants["plain"].named_parameters()), 1.0)
    samples = Samples.read(batches(data))
    first = Evaluator.of("plain", model, samples, {}, how, weights)
    later = Evaluator.of("plain", model, samples, {}, how, weights, first.costs)
    assert first.suffixes is not None
    assert later.suffixes is not None
    for name in weights:
        assert first.suffixes.seconds([name]) == later.suffixes.seconds([name])


def test_faults_in_bounds_reach_a_compiled_network(data: Any, variants: dict[str, nn.Module]) -> None:
    hard = {"hard": variants["hard"]}
    asked: dict[str, Any] = {"targets": ["bounds"], "trials": 12, "suffixes": False}
    eager = run_campaign(hard, data, BitFlip, [0.05], **asked)
    compiled = run_campaign(hard, data, BitFlip, [0.05], **asked, compile=True)
    assert [row.accuracy for row in eager.rows] == [row.accuracy for row in compiled.rows]
    assert len({row.accuracy for row in eager.rows}) > 1
