"""A campaign that is broken off goes on where it was, and another one is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_campaigns import RATES, Small, campaign_data, campaign_variants, untimed
from torch import Tensor, nn

from fitact_fx import run_campaign
from fitact_fx.campaigns.evaluating import Evaluator
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return campaign_data()


@pytest.fixture
def variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    return campaign_variants(data)


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
