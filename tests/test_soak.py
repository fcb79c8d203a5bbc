"""Campaigns that are killed: a short form of tools/soak.py, and that it would notice what goes wrong."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from synthetic_campaigns import rate_sweep

from fitact_fx.campaigns import Store
from fitact_fx.campaigns.rows import Row

pytest.importorskip("psutil", reason="it counts processes with psutil")

TOOLS = Path(__file__).parents[1] / "tools"


def soaked(*arguments: str) -> str:
    """What the tool prints; it must find no problem."""
    command = [sys.executable, str(TOOLS / "soak.py"), "--trials", "40", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_campaign_that_is_killed_at_random_moments_ends_as_one_that_is_not() -> None:
    told = soaked("--kills", "2", "--forms", "alone", "workers")
    assert len(re.findall(r"killed while (starting|opening|running)", told)) == 4
    assert re.findall(r"^(\w+): 2 kills .* no difference$", told, re.MULTILINE) == ["alone", "workers"]
    assert told.endswith("all is well\n")


def test_workers_of_a_cluster_that_are_killed_lose_nothing() -> None:
    pytest.importorskip("distributed", reason="a dask cluster needs distributed")
    assert re.search(r"^dask: 1 kills .* no difference$", soaked("--kills", "1", "--forms", "dask"), re.MULTILINE)


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return import_module("soak")


def written(path: Path, change: Callable[[list[Row]], list[Row]], seed: int = 7) -> Path:
    """A store of made-up rows, of which some are not what they were."""
    found = rate_sweep(trials=3, seed=seed)
    with Store.create_or_open(path, found.settings, found.conditions) as store:
        store.add(change(list(found.rows)))
    return path


WRONG: dict[str, Callable[[list[Row]], list[Row]]] = {
    "1 trials are lost or other": lambda rows: rows[1:],
    "1 trials are new or other": lambda rows: [*rows, replace(rows[0], trial=3)],
    "2 trials are lost or other": lambda rows: [*(replace(row, way="suffix") for row in rows[:2]), *rows[2:]],
    "1 trials are new or other, such as": lambda rows: [replace(rows[0], accuracy=0.5000000000000001), *rows[1:]],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_trial_that_is_lost_or_changed_in_a_bit_is_noticed(soak: ModuleType, tmp_path: Path, said: str) -> None:
    whole = written(tmp_path / "whole.db", lambda rows: rows)
    assert said in "; ".join(soak.differences(whole, written(tmp_path / "killed.db", WRONG[said])))


def test_times_may_differ_and_settings_may_not(soak: ModuleType, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.db", lambda rows: rows)
    slower = written(tmp_path / "slower.db", lambda rows: [replace(row, seconds=9.0) for row in rows])
    assert soak.differences(whole, slower) == []
    assert soak.differences(whole, written(tmp_path / "other.db", lambda rows: rows, seed=8)) == [
        "the settings differs"
    ]


def test_a_damaged_store_is_noticed(soak: ModuleType, tmp_path: Path) -> None:
    whole, killed = (written(tmp_path / name, lambda rows: rows) for name in ("whole.db", "killed.db"))
    raw = bytearray(killed.read_bytes())
    raw[4096:8192] = bytes(4096)  # the second page, where a table begins
    killed.write_bytes(raw)
    assert "damaged" in soak.differences(whole, killed)[0]
