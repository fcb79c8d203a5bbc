"""The store of a campaign: what goes in comes out, whoever is killed meanwhile, and whatever fails is told."""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitact_fx.campaigns.differences import settings_to_compare
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError

SETTINGS: dict[str, Any] = {
    "kind": "rate sweep",
    "format": "q15.16",
    "seed": 0,
    "trials": 5000,
    "metrics": ["iou"],
    "batches": [128, 128],
    "samples": 256,
    "data": "5f",
    "variants": {
        "plain": {"class": "ResNet", "fingerprint": "1a", "clean": {"accuracy": 0.9}, "seconds": 0.1, "coverage": []},
        "fitact": {"class": "ResNet", "fingerprint": "2b", "clean": {"accuracy": 0.91}, "seconds": 0.2, "coverage": []},
    },
}
CONDITIONS = (Condition("1e-06", 5000, 8000, rate=1e-6), Condition("bit 3", 5000, 250, bit=3))
REMEDY = "give the same arguments to resume, or another path for a new campaign"


def row(trial: int = 0, variant: str = "plain", cell: str = "1e-06", **others: Any) -> Row:
    return replace(Row(variant, cell, trial, 3, "c0ffee", 0.5, 0.25, 0.125, 0.0, {"iou": 0.75}), **others)


def opened(path: Path, changed: dict[str, Any] | None = None, conditions: tuple[Condition, ...] = CONDITIONS) -> Store:
    return Store.create_or_open(path, SETTINGS | (changed or {}), conditions)


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


class Child:
    """A forked process that does `work`, and what it says. A fork, since a new Python needs seconds to import torch."""

    def __init__(self, work: Callable[[Callable[[object], None]], None]) -> None:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: this child needs none
            self.pid = os.fork()
        if self.pid == 0:
            try:
                work(lambda text: os.write(writing, f"{text}\n".encode()) and None)
            except (CampaignError, AssertionError) as error:
                os.write(writing, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        self.stream = os.fdopen(reading)

    def line(self) -> str:
        return self.stream.readline().rstrip("\n")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def rest(self) -> list[str]:
        """Everything it still says until it is gone."""
        with self.stream:
            said = self.stream.read().splitlines()
        os.waitpid(self.pid, 0)
        return said


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(CampaignError) as refused:
        work()
    return str(refused.value)


def test_a_store_gives_back_what_was_put_in_sorted_by_condition_trial_and_variant(path: Path) -> None:
    rows = [row(t, v, c) for c in ("bit 3", "1e-06") for v in ("fitact", "plain") for t in (2, 0)]
    with opened(path) as store:
        store.add(rows)
        assert store.rows("fitact", "bit 3") == [row(0, "fitact", "bit 3"), row(2, "fitact", "bit 3")]
        assert store.done() == {(v, c): {0, 2} for v in ("plain", "fitact") for c in ("1e-06", "bit 3")}
    found = Store.read(path)
    assert [(one.cell, one.trial, one.variant) for one in found.rows] == [
        (cell, trial, variant) for cell in ("1e-06", "bit 3") for trial in (0, 2) for variant in ("plain", "fitact")
    ]
    assert set(map(repr, found.rows)) == set(map(repr, rows))
    assert found.conditions == CONDITIONS
    assert found.settings == SETTINGS


def test_every_column_of_a_row_survives(path: Path) -> None:
    empty = row(
        0, accuracy=None, sdc1=None, sdc5=None, metrics={}, error="iou: ValueError('ü')", way="suffix", seconds=1.5
    )
    with opened(path) as store:
        store.add([empty])
        assert store.rows("plain", "1e-06") == [empty]
    assert Store.read(path).rows == (empty,)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, allow_subnormal=True), st.floats()), min_size=1))
def test_numbers_are_exact_to_the_bit_and_metrics_may_be_nan_or_infinite(tmp_path: Path, numbers: list[Any]) -> None:
    shares, metrics = [abs(a) for a, _ in numbers] + [5e-324, 0.1], [b for _, b in numbers] + [nan, -inf]
    path = tmp_path / f"{time.monotonic_ns()}.db"
    with opened(path) as store:
        store.add(
            row(i, accuracy=a, due=a, metrics={"iou": b}) for i, (a, b) in enumerate(zip(shares, metrics, strict=True))
        )
    found = Store.read(path).rows
    assert [struct.pack("d", one.accuracy) for one in found] == [struct.pack("d", share) for share in shares]
    assert [one.due for one in found] == shares
    for one, given_one in zip(found, metrics, strict=True):
        got = one.metrics["iou"]
        assert (isnan(got) and isnan(given_one)) or struct.pack("d", got) == struct.pack("d", given_one)


def test_the_clean_value_of_a_metric_may_be_nan(path: Path) -> None:
    clean = {"plain": {**SETTINGS["variants"]["plain"], "clean": {"iou": nan}}}
    with opened(path, {"variants": clean}) as store:
        assert isnan(store.settings["variants"]["plain"]["clean"]["iou"])
    opened(path, {"variants": clean}).close()  # and it is no difference to itself


def test_a_row_that_is_there_already_is_a_bug_and_nothing_of_its_transaction_stays(path: Path) -> None:
    with opened(path) as store:
        store.add([row(0)])
        with pytest.raises(sqlite3.IntegrityError):
            store.add([row(1), row(0)])
        store.add([row(2)])
        assert store.done()["plain", "1e-06"] == {0, 2}


def test_rows_of_a_generator_that_raises_are_not_written(path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield row(0)
        raise KeyboardInterrupt

    with opened(path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add(broken())
        assert not store.done()["plain", "1e-06"]


def test_any_sqlite_tool_can_look_at_the_view_results(path: Path) -> None:
    with opened(path) as store:
        store.add([row(4, "fitact", "bit 3", accuracy=0.125)])
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT variant, cell, trial, accuracy FROM results").fetchall() == [
        ("fitact", "bit 3", 4, 0.125)
    ]
    connection.close()


def test_a_closed_store_is_one_file_beside_a_lock_that_says_nothing(path: Path) -> None:
    with opened(path) as store:
        store.add([row(0)])
    assert files(path.parent) == {"run.db", "run.db.lock"}
    Store.read(path)
    assert files(path.parent) == {"run.db", "run.db.lock"}
    with opened(path) as store:
        assert store.done()["plain", "1e-06"] == {0}


def test_a_copy_of_a_closed_store_has_everything(path: Path, tmp_path: Path) -> None:
    with opened(path) as store:
        store.add([row(0)])
    assert Store.read(shutil.copy(path, tmp_path / "copy ?#%41 of.db")).rows == (row(0),)


def test_notes_are_kept_and_replaced(path: Path) -> None:
    with opened(path) as store:
        assert store.note("costs") is None
        store.set_note("costs", {"conv": 0.5})
        store.set_note("costs", {"conv": inf, "fc": [1, None]})
    with opened(path) as store:
        assert store.note("costs") == {"conv": inf, "fc": [1, None]}
        assert "the note 'x' cannot be written as JSON" in refusal(lambda: store.set_note("x", {1, 2}))


def test_a_session_has_what_it_was_told_and_one_that_was_killed_what_it_added(path: Path) -> None:
    def killed(say: Callable[[object], None]) -> None:
        store = opened(path)
        store.begin_session({"started": "2026-01-02T03:04:05+00:00", "cpu": "z80"})
        store.add([row(0), row(0, "fitact"), row(1)])
        store.add([row(1, "fitact"), row(2)])
        os.kill(os.getpid(), signal.SIGKILL)

    Child(killed).rest()
    with opened(path) as store:
        store.begin_session({"started": "2026-01-03T03:04:05+00:00"})
        store.add([row(3)])
        store.end_session(seconds=12.5, trials=7)
        store.add([row(4)])
    first, second = Store.read(path).sessions
    assert 0 < first["seconds"] < 60
    assert first == {
        "started": "2026-01-02T03:04:05+00:00",
        "cpu": "z80",
        "seconds": first["seconds"],
        "trials": 3,
        "ended": False,
    }
    assert second == {"started": "2026-01-03T03:04:05+00:00", "seconds": 12.5, "trials": 7, "ended": True}


# Who may work on it


def test_the_same_process_cannot_open_a_store_twice(path: Path) -> None:
    with opened(path) as store:
        assert refusal(lambda: opened(path)) == f"{path} is open in this process already;\n  close that store first"
        store.add([row(0)])
    with opened(path) as store:
        assert store.done()["plain", "1e-06"] == {0}


def test_a_second_process_is_told_who_works_on_the_store(path: Path, tmp_path: Path) -> None:
    def works(say: Callable[[object], None]) -> None:
        with opened(path):
            say("open")
            time.sleep(60)

    child = Child(works)
    assert child.line() == "open"
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for name in (path, link):
        said = refusal(lambda name=name: opened(name))
        assert said.startswith(f"another process works on {name} (pid {child.pid} on {os.uname().nodename} since 2")
        assert said.endswith(
            "wait until it is done or stop it, or give another path; its results can be read meanwhile"
        )
    assert Store.read(path).rows == ()
    child.kill()
    child.rest()
    opened(path).close()  # the kernel took the lock back


def test_a_file_of_the_users_that_is_called_like_the_lock_is_not_written_over(path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run.db.lock"
    mine.write_text("torch==2.13\n")
    with opened(path):
        assert refusal(lambda: opened(path)).startswith(f"another process works on {path};\n")
    assert mine.read_text() == "torch==2.13\n"


def test_a_store_is_read_while_another_process_writes(path: Path) -> None:
    def writes(say: Callable[[object], None]) -> None:
        with opened(path) as store:
            for trial in range(5000):
                store.add([row(trial), row(trial, "fitact")])
                say(trial)

    child = Child(writes)
    seen = []
    while len(seen) < 8:
        told = int(child.line())
        found = Store.read(path).rows
        assert [(one.trial, one.variant) for one in found] == [
            (trial, variant) for trial in range(len(found) // 2) for variant in ("plain", "fitact")
        ]
        seen.append(len(found) // 2)
        assert seen[-1] > told
    assert seen == sorted(seen)
    child.kill()
    child.rest()


# What a kill leaves


def test_a_killed_writer_loses_nothing_that_was_added_and_has_nothing_twice(path: Path) -> None:
    def writes(say: Callable[[object], None]) -> None:
        store = opened(path)
        first = max(store.done()["plain", "1e-06"], default=-1) + 1
        say(f"start {first}")
        for trial in range(first, 5000):
            store.add([row(trial, "plain", "1e-06", accuracy=1 / (trial + 1)), row(trial, "fitact", "bit 3")])
            say(trial)

    told, chance = [], random.Random(0)
    for _ in range(8):
        child = Child(writes)
        assert child.line().startswith("start ")
        time.sleep(chance.uniform(0, 0.06))
        child.kill()
        told += [int(line) for line in child.rest() if line.isdigit()]
    rows = Store.read(path).rows
    trials = [one.trial for one in rows if one.cell == "1e-06"]
    assert trials == [one.trial for one in rows if one.cell == "bit 3"] == list(range(len(trials)))
    assert set(told) <= set(trials)
    assert len(told) > 8
    assert all(one.accuracy == 1 / (one.trial + 1) for one in rows if one.cell == "1e-06")
    opened(path).close()
    assert files(path.parent) == {"run.db", "run.db.lock"}
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.parametrize("size", [0, 8_000_000])  # so much does not fit into SQLite's memory: half is on the disk
def test_a_store_whose_creation_was_killed_is_created_again(path: Path, size: int) -> None:
    class Deadly(tuple[Condition, ...]):
        def __iter__(self) -> Iterator[Condition]:
            os.kill(os.getpid(), signal.SIGKILL)
            return super().__iter__()

    Child(lambda say: opened(path, {"big": "x" * size}, Deadly(CONDITIONS)).close()).rest()
    assert path.exists()
    assert path.stat().st_size > size / 4 or not size
    assert f"there is no campaign in {path} yet" in refusal(lambda: Store.read(path))
    with opened(path) as store:
        store.add([row(0)])
    assert Store.read(path).settings == SETTINGS


# What is refused, and how


def other_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE places (url TEXT)")
    connection.close()


def other_version(path: Path) -> None:
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"variant,cell\n" * 100), "is cut, damaged or not a campaign's store"),
        (lambda path: path.write_bytes(b"PK"), "is cut, damaged or not a campaign's store"),
        (other_sqlite, "is an SQLite database of another program"),
        (other_version, "its store is version 9, this one reads version 1"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_stays_what_it_is(
    path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(path)
    (path.parent / "run.db.lock").unlink(missing_ok=True)
    before = path.read_bytes()
    for work in (lambda: Store.read(path), lambda: opened(path)):
        assert refusal(work).startswith(f"{path} ")
        assert said in refusal(work)
        assert ";\n  " in refusal(work)
    assert path.read_bytes() == before
    assert files(path.parent) == {"run.db"}


def test_a_cut_file_is_never_taken_for_a_store(path: Path) -> None:
    with opened(path) as store:
        store.add([row(trial) for trial in range(400)])
    whole = path.read_bytes()
    for size in (2, 50, 100, 1000, 4096, 5000, len(whole) // 2, len(whole) - 4096, len(whole) - 100):
        path.write_bytes(whole[:size])
        for work in (lambda: Store.read(path), lambda: opened(path)):
            assert "is cut, damaged or not a campaign's store" in refusal(work), size


def test_a_page_of_zeros_is_noticed(path: Path) -> None:
    with opened(path) as store:
        store.add([row(trial) for trial in range(400)])
    whole = path.read_bytes()
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: 4096 * page] + bytes(4096) + whole[4096 * (page + 1) :])
        assert "is cut, damaged or not" in refusal(lambda: Store.read(path))


def test_settings_that_are_no_json_are_refused_before_anything_is_made(path: Path) -> None:
    assert refusal(lambda: opened(path, {"seed": {1, 2}})) == (
        "the settings of this campaign cannot be written as JSON: Object of type set is not JSON serializable;\n"
        "  use text, numbers, lists and dictionaries only"
    )
    assert files(path.parent) == set()


def test_a_creation_that_fails_leaves_nothing(path: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        opened(path, conditions=(CONDITIONS[0], CONDITIONS[0]))
    assert files(path.parent) == set()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/run.db", "there is no folder {}/none;\n  give the path of a file in a folder that exists"),
        ("", "{} is a folder;\n"),
    ],
)
def test_a_place_for_no_file_is_told(tmp_path: Path, name: str, said: str) -> None:
    assert refusal(lambda: opened(tmp_path / name)).startswith(said.format(tmp_path))
    assert refusal(lambda: Store.read(tmp_path / name)).startswith(f"there is no file {tmp_path / name};\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_files_is_told() -> None:
    said = refusal(lambda: opened(Path("/proc/run.db")))
    assert said.startswith("/proc/run.db cannot be opened for writing: ")
    assert said.endswith("give the path of a file in a folder that can be written")


# Another campaign


def test_the_same_campaign_goes_on_whatever_was_measured_and_the_stored_settings_count(path: Path) -> None:
    opened(path).close()
    measured = {name: {**facts, "clean": {}, "seconds": 9.0} for name, facts in SETTINGS["variants"].items()}
    with opened(path, {"variants": measured, "batches": (128, 128)}) as store:
        assert store.settings == SETTINGS
        assert store.conditions == CONDITIONS
    assert settings_to_compare(SETTINGS)["variants"]["plain"] == {"class": "ResNet", "fingerprint": "1a"}


def changed_variant(**changes: object) -> dict[str, Any]:
    return {"variants": {**SETTINGS["variants"], "fitact": {**SETTINGS["variants"]["fitact"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"format": "float32"}, ["it was made with format 'q15.16', and this call has 'float32'"]),
        ({"until": 0.01}, ["it was made without until, and this call has 0.01"]),
        ({"seed": True}, ["it was made with seed 0, and this call has True"]),
        (
            changed_variant(fingerprint="3c"),
            ["variant 'fitact' has other parameters or bounds than the one in the store"],
        ),
        (
            changed_variant(**{"class": "VGG", "fingerprint": "3c"}),
            ["variant 'fitact' was made with class 'ResNet', and this call has 'VGG'"],
        ),
        (
            {"variants": {"plain": SETTINGS["variants"]["plain"], "ranger": {}}},
            [
                "the variant 'fitact' of the store is not in this call",
                "the variant 'ranger' of this call is not in the store",
            ],
        ),
        (
            {"variants": dict(reversed(SETTINGS["variants"].items()))},
            ["the variants come in another order: plain, fitact there, fitact, plain here"],
        ),
        ({"data": "6", "samples": 250, "batches": [250]}, ["the data is not the same: 256 samples there, 250 here"]),
        ({"data": "6"}, ["the data is not the same: 256 samples there and here, with other values or labels"]),
        ({"batches": [256]}, ["it was made with batches [128, 128], and this call has [256]"]),
    ],
)
def test_another_campaign_is_refused_and_what_differs_is_named(
    path: Path, changes: dict[str, Any], sentences: list[str]
) -> None:
    opened(path).close()
    before = path.read_bytes()
    lines = ";\n  ".join([f"{path} holds another campaign", *sentences, REMEDY])
    assert refusal(lambda: opened(path, changes)) == lines
    assert path.read_bytes() == before
    opened(path).close()


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        (CONDITIONS[:1], "the condition 'bit 3' of the store is not in this call"),
        ((*CONDITIONS, Condition("bit 4", 1, 1)), "the condition 'bit 4' of this call is not in the store"),
        (CONDITIONS[::-1], "the conditions come in another order"),
        (
            (replace(CONDITIONS[0], population=9), CONDITIONS[1]),
            "condition '1e-06' was made with population 8000, and this call has 9",
        ),
    ],
)
def test_other_conditions_are_named(path: Path, conditions: tuple[Condition, ...], sentence: str) -> None:
    opened(path).close()
    said = refusal(lambda: opened(path, conditions=conditions))
    assert said == f"{path} holds another campaign;\n  {sentence};\n  {REMEDY}"


def test_at_most_ten_differences_are_told_and_long_values_are_cut(path: Path) -> None:
    opened(path, {f"setting{i}": i for i in range(20)} | {"at": ["x" * 500]}).close()
    said = refusal(lambda: opened(path)).split(";\n  ")
    assert len(said) == 12
    assert said[-2] == "and 12 more differences"
    assert all(len(line) < 150 for line in said[1:])


# The disk


def test_a_full_disk_takes_back_what_was_begun_and_tells_what_to_do(path: Path) -> None:
    with opened(path) as store:
        store.add([row(trial) for trial in range(50)])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        assert refusal(lambda: store.add(row(trial) for trial in range(50, 2000))) == (
            f"{path} cannot be written: database or disk is full;\n  free space on its disk and run the same command "
            "again: nothing that was written before is lost"
        )
        assert store.done()["plain", "1e-06"] == set(range(50))
        assert len(Store.read(path).rows) == 50
    with opened(path) as store:
        store.add(row(trial) for trial in range(50, 2000))
    assert len(Store.read(path).rows) == 2000


@pytest.mark.parametrize("room", [200_000, 900_000, 4_500_000])
def test_writes_that_fail_lose_nothing_that_was_written(path: Path, room: int) -> None:
    def writes(say: Callable[[object], None]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with opened(path) as store:
            for trial in range(5000):
                store.add(row(30 * trial + i, checksum="c" * 40) for i in range(30))
                say(trial)

    *told, problem, remedy = Child(writes).rest()
    assert f"CampaignError: {path} cannot be written: disk I/O error;" in problem
    assert remedy.startswith("  free space on its disk and run the same command again")
    complete = [int(line) for line in told if line.isdigit()]
    assert len(complete) >= 5
    assert len(Store.read(path).rows) == 30 * len(complete)
    with opened(path) as store:
        store.add([row(4999, "fitact")])
    assert len(Store.read(path).rows) == 30 * len(complete) + 1


def test_a_disk_that_is_full_from_the_start_gets_no_store(path: Path) -> None:
    def creates(say: Callable[[object], None]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        opened(path)

    assert any(f"CampaignError: {path} cannot be written: disk I/O error;" in line for line in Child(creates).rest())
    assert files(path.parent) == set()


@pytest.fixture
def locked_up() -> Iterator[Path]:
    """A folder that a process of no rights can look into and not write to, unless it is opened up."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def without_rights(folder: Path, work: Callable[[], object]) -> list[str]:
    """What `work` gives or raises in a process that may only read what is in `folder`."""
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)

    def dropped(say: Callable[[object], None]) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        say(work())

    return Child(dropped).rest()


def test_a_store_is_read_where_nothing_can_be_written_and_not_opened(locked_up: Path) -> None:
    path = locked_up / "run.db"
    with opened(path) as store:
        store.add([row(0)])
    assert without_rights(locked_up, lambda: Store.read(path).rows) == [str((row(0),))]
    (locked_up / "run.db.lock").unlink()
    problem = without_rights(locked_up, lambda: opened(path))
    assert f"CampaignError: {path} cannot be opened for writing: " in "\n".join(problem)
    assert files(locked_up) == {"run.db"}


@pytest.mark.parametrize("with_index", [True, False])
def test_the_store_of_a_killed_writer_is_read_whole_where_nothing_can_be_written(
    path: Path, locked_up: Path, with_index: bool
) -> None:
    def killed(say: Callable[[object], None]) -> None:
        store = opened(path)
        store.add([row(0), row(1)])
        os.kill(os.getpid(), signal.SIGKILL)

    Child(killed).rest()
    for ending in ("", "-wal", "-shm") if with_index else ("", "-wal"):
        shutil.copy(f"{path}{ending}", locked_up)
    assert without_rights(locked_up, lambda: Store.read(locked_up / "run.db").rows) == [str((row(0), row(1)))]


def test_a_store_that_another_program_keeps_locked_says_so(path: Path) -> None:
    with opened(path) as store:
        store._connection.execute("PRAGMA busy_timeout = 1")
        browser = sqlite3.connect(path, isolation_level=None)
        browser.execute("BEGIN IMMEDIATE")
        assert refusal(lambda: store.add([row(0)])) == (
            f"another program keeps {path} locked (database is locked);\n  close it and run the same command again"
        )
        browser.close()
        store.add([row(0)])


def test_the_store_holds_text_and_numbers_only(path: Path) -> None:
    with opened(path) as store:
        store.add([row(0)])
        store.begin_session({"started": "now"})
        store.set_note("a", [1])
    connection = sqlite3.connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert set(tables) == {"campaign", "conditions", "variants", "trials", "sessions", "notes"}
    for name in tables:
        for found in connection.execute(f"SELECT * FROM {name}"):
            assert not any(isinstance(value, bytes) for value in found)
    assert json.loads(connection.execute("SELECT settings FROM campaign").fetchone()[0]) == SETTINGS
    connection.close()
