"""Campaigns end to end: against loops written by hand, resumed, refused, and whatever may go wrong in one trial."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx import run_campaign
from fitact_fx.campaigns import Draws, Exhaustive, SingleFaults
from fitact_fx.campaigns.evaluating import Evaluator, How
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Row
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip, Burst, FaultList, StuckAt
from fitact_fx.tracing import trace

RATES = [1e-4, 1e-3]


class Small(nn.Module):
    """Two convolutions and a residual: enough for suffixes to have something to leave out."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.second(y)) + y)
        return self.last(y.mean((2, 3)))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.linspace(-4, 4, 40)[:, None, None, None] + torch.randn(40, 1, 6, 6, generator=generator)
    return images, torch.randint(0, 5, (40,), generator=generator)


@pytest.fixture
def variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.last.bias.sub_(model(data[0]).mean(0))
    labels = model(data[0]).argmax(1)
    assert len(labels.unique()) > 2
    data[1][:30] = labels[:30]  # three in four are right
    hard = fitact_fx.harden(model, "layer")
    fitact_fx.calibrate(hard, [data[0]])
    return {"plain": model, "hard": hard}


def batches(data: tuple[Tensor, Tensor], size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def untimed(result: CampaignResult) -> list[Row]:
    """The rows without what may differ from run to run."""
    return [replace(row, seconds=0.0) for row in result.rows]


def values(result: CampaignResult) -> list[Row]:
    """The rows without how they were found, too."""
    return [replace(row, way="") for row in untimed(result)]


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


def test_the_same_call_on_a_store_goes_on_where_it_was(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(path: Path) -> CampaignResult:
        return run_campaign(variants, data, BitFlip, RATES, trials=10, store=path, until=0.05, minimum=4)

    whole = run(tmp_path / "whole.db")
    add, done = Store.add, []

    def interrupted(store: Store, rows: Any) -> None:
        add(store, rows)
        done.append(len(rows))
        if len(done) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", interrupted)
    monkeypatch.setattr("fitact_fx.campaigns.running._MOST_PER_BLOCK", 2)
    for _ in range(50):
        try:
            resumed = run(tmp_path / "broken.db")
            break
        except KeyboardInterrupt:
            continue
    assert untimed(resumed) == untimed(whole)
    assert len(resumed.sessions) > 3
    counts = len(done)
    assert untimed(run(tmp_path / "broken.db")) == untimed(whole)
    assert len(done) == counts  # nothing was run again


@pytest.mark.parametrize("asked", ["rates", "per site"])
def test_the_rows_do_not_depend_on_who_ran_them(asked: str, data: Any, variants: dict[str, nn.Module]) -> None:
    here = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3)
    forked = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3, workers=2)
    with ThreadPoolExecutor(2) as pool:
        threaded = run_campaign(variants, batches(data), **ASKED[asked], until=0.2, minimum=3, executor=pool)
    assert untimed(here) == untimed(forked) == untimed(threaded)


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


def test_another_campaign_on_the_store_is_refused_and_the_difference_named(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "run.db"

    def run(models: Any = variants, test: Any = data, **other: Any) -> CampaignResult:
        return run_campaign(models, test, **({"rates": RATES, "trials": 3, "store": path} | other))

    run()
    changed = Small().eval()
    for named, again in {
        "format 'q15.16', and this call has 'float32'": lambda: run(format="float32"),
        "seed 0": lambda: run(seed=1),
        "trials 3": lambda: run(trials=4),
        "variant 'plain' has other parameters": lambda: run({**variants, "plain": changed}),
        "the data is not the same": lambda: run(test=(data[0] + 1, data[1])),
        "the condition '0.01' of this call": lambda: run(rates=[1e-2]),
    }.items():
        with pytest.raises(CampaignError, match="holds another campaign") as error:
            again()
        assert named in str(error.value)
    assert len(run().rows) == 12


def test_another_forward_or_metric_of_the_same_name_is_refused(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path
) -> None:
    class Scaled(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.5

    model = variants["plain"]
    scaled = Scaled().eval()
    scaled.load_state_dict(model.state_dict())
    same, path = Small().eval(), tmp_path / "run.db"
    same.load_state_dict(model.state_dict())
    Scaled.__name__ = Scaled.__qualname__ = "Small"

    def sharp(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).float().mean())

    def dull(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).double().mean())

    run_campaign({"a": model}, data, BitFlip, [1e-3], trials=2, metrics={"hit": sharp}, store=path)
    run_campaign({"a": same}, data, BitFlip, [1e-3], trials=2, metrics={"hit": sharp}, store=path)
    with pytest.raises(CampaignError, match="variant 'a' was made with code"):
        run_campaign({"a": scaled}, data, BitFlip, [1e-3], trials=2, metrics={"hit": sharp}, store=path)
    with pytest.raises(CampaignError, match="metric_code"):
        run_campaign({"a": model}, data, BitFlip, [1e-3], trials=2, metrics={"hit": dull}, store=path)


HASHED = """
import sys, torch, fitact_fx
from fitact_fx.campaigns import Exhaustive
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
batches = [(torch.ones(2, 4), [{"boxes": {"ab", "cd", "ef"}}, {}])]
found = lambda outputs, targets: float(outputs.sum() > 0) if True in {True, "a", "b"} else 0.0
fitact_fx.run_campaign({"net": model}, batches, kind=Exhaustive(bits={"sign", 3, "integer"}),
                       targets=["parameters:1.bias"], metrics={"found": found}, store=sys.argv[1])
"""


def test_a_campaign_is_known_again_in_another_process(tmp_path: Path) -> None:
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HASHED, str(tmp_path / "run.db")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_class_in_eight_bits_is_not_taken_for_no_label() -> None:
    model = nn.Linear(4, 200).eval()
    labels = (torch.arange(40) + 140).to(torch.uint8)
    result = run_campaign({"net": model}, (torch.randn(40, 4), labels), BitFlip, [1e-3], trials=1)
    assert result.settings["labelled"] == 40
    assert result.settings["variants"]["net"]["clean"]["accuracy"] * 40 == pytest.approx(
        round(result.settings["variants"]["net"]["clean"]["accuracy"] * 40)
    )


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


def test_a_model_that_answers_otherwise_than_when_the_store_was_made_is_refused(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"rates": [1e-3], "store": tmp_path / "run.db", "until": 1e-9, "minimum": 2, "trials": 3}
    monkeypatch.setattr("fitact_fx.campaigns.running._work", lambda *args, **kwargs: None)
    run_campaign({"net": variants["plain"]}, data, **asked)  # a store without a trial, as after a kill
    clean = Evaluator.clean_values
    monkeypatch.setattr(Evaluator, "clean_values", lambda self: {**clean(self), "accuracy": 0.125})
    with pytest.raises(CampaignError, match=r"variant 'net' gives .* and gave .* when the store was made"):
        run_campaign({"net": variants["plain"]}, data, **asked)


def test_transient_faults_hit_each_batch_with_its_own_part(data: Any, variants: dict[str, nn.Module]) -> None:
    asked: dict[str, Any] = {"rates": [3e-3], "trials": 3, "at": "*", "permanent": False}
    small = run_campaign(variants, batches(data, 7), **asked)
    whole = run_campaign(variants, batches(data, 40), **asked)
    for one, other in zip(small.rows, whole.rows, strict=True):
        assert one.checksum == other.checksum
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.03)  # batches round apart
    assert any(row.accuracy < 0.7 for row in whole.rows if row.accuracy is not None)


def test_targets_that_cannot_be_transient_are_refused_before_anything_runs(
    data: Any, variants: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    with pytest.raises(fitact_fx.FitactError, match="is no activation"):
        run_campaign(
            variants, data, BitFlip, [1e-3], at="*", permanent=False, targets=["parameters"], store=path, trials=2
        )
    assert not path.exists()


def test_faults_in_bounds_reach_a_compiled_network(data: Any, variants: dict[str, nn.Module]) -> None:
    hard = {"hard": variants["hard"]}
    asked: dict[str, Any] = {"targets": ["bounds"], "trials": 12, "suffixes": False}
    eager = run_campaign(hard, data, BitFlip, [0.05], **asked)
    compiled = run_campaign(hard, data, BitFlip, [0.05], **asked, compile=True)
    assert [row.accuracy for row in eager.rows] == [row.accuracy for row in compiled.rows]
    assert len({row.accuracy for row in eager.rows}) > 1


def test_one_condition_of_a_fault_model_that_says_how_often_it_strikes(
    data: Any, variants: dict[str, nn.Module]
) -> None:
    result = run_campaign(variants, data, BitFlip(count=3), trials=5)
    assert {row.faults for row in result.rows} == {3}
    assert values(result) == values(run_campaign(variants, data, kind=Draws(BitFlip(count=3)), trials=5))


KILLED = """
import sys, torch, fitact_fx
from fitact_fx.faults import BitFlip
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
data = torch.randn(40, 1, 6, 6), torch.arange(40) % 5
result = fitact_fx.run_campaign({"net": model}, data, BitFlip, [1e-3], trials=60, store=sys.argv[1])
print(len(result.rows), hash(tuple((row.trial, row.accuracy, row.checksum) for row in result.rows)))
"""


def test_a_killed_process_is_taken_up_where_it_was(tmp_path: Path) -> None:
    def start(store: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLED, str(tmp_path / store)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    undisturbed, _ = start("whole.db").communicate(timeout=120)
    process = start("killed.db")
    while process.poll() is None and not _rows(tmp_path / "killed.db"):
        pass
    process.kill()
    process.communicate(timeout=60)
    resumed, _ = start("killed.db").communicate(timeout=120)
    assert resumed == undisturbed
    assert resumed.startswith("60 ")


def _rows(path: Path) -> int:
    try:
        return len(Store.read(path).rows)
    except (CampaignError, FileNotFoundError):
        return 0
