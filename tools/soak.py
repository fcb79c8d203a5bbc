"""A campaign that is killed at random moments, again and again: its store must end as that of one left alone.

    python tools/soak.py [--kills 50] [--seed 0] [--forms alone workers worker dask]

Forms: `alone` runs tools/soak_campaign.py in one process and kills its process group with SIGKILL; `workers` has two
worker processes, and sometimes only the process that started them is killed; `worker` and `dask` kill workers, a tenth
as often, while the campaign runs on. A kill falls while the program starts, while it opens its store, or
between and within trials. The same command is started again each time. At the end no trial may be missing or be there
twice, every value must be the undisturbed one to the last bit (but for times), SQLite must find the file intact,
and no process may be left. The status is 1 if anything else is found.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

SCRIPT = Path(__file__).with_name("soak_campaign.py")
FORMS = {"alone": (), "workers": ("--workers", "2"), "worker": ("--workers", "2"), "dask": ("--dask", "2")}
STAGES = ("starting", "opening", "running")
PATIENCE = 300.0  # seconds: for a machine that has other things to do as well
EQUAL = "trials.condition, trial, variant, faults, checksum, accuracy, sdc1, sdc5, due, metrics, way, error"


class BrokenPromiseError(Exception):
    """The campaign did not do what it promises."""


def main() -> int:
    """Kill, start again, compare; the exit status."""
    options = _options()
    problems = 0
    with TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        print("undisturbed", end=": ", flush=True)
        started = time.perf_counter()
        whole = Campaign(folder / "undisturbed.db", (), options.trials)
        whole.start()
        whole.finish()
        pace = time.perf_counter() - started
        print(f"{whole.rows():,} rows in {pace:.1f} s", flush=True)
        for form in options.forms:
            soak = Soak(form, folder, options.kills, options.trials, pace, random.Random(f"{options.seed} {form}"))
            problems += soak.run(whole.store)
        left = [each.name for each in folder.glob("fitact-fx-*")]  # what a campaign puts into its temporary folder
    if left:
        print(f"files are left behind: {', '.join(left)}")
    print("all is well" if not problems and not left else f"{problems + len(left)} problems")
    return 1 if problems or left else 0


@dataclass(eq=False)
class Campaign:
    """The command, and the processes that it is."""

    store: Path
    how: Sequence[str]
    trials: int
    process: "subprocess.Popen[bytes] | None" = None
    locked: int = 0

    def start(self) -> None:
        """In a process group of its own, which everything that it starts belongs to."""
        self.locked = self._lock()
        command = [sys.executable, str(SCRIPT), str(self.store), "--trials", str(self.trials), *self.how]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.store.parent)}
        with self.store.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def kill(self, *, all_of_it: bool = True) -> None:
        """With SIGKILL, and see that nothing is left soon after."""
        assert self.process is not None
        (os.killpg if all_of_it else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.require_gone()

    def finish(self) -> None:
        """Wait for its own end. BrokenPromiseError if that is no good one."""
        assert self.process is not None
        if self.process.wait(PATIENCE):
            raise BrokenPromiseError(f"the campaign failed:\n{self.store.with_suffix('.log').read_text()}")
        self.require_gone()

    def require_gone(self) -> None:
        """BrokenPromiseError if a process of the group stays."""
        wait_for(lambda: not self.members(), 30, f"processes are left behind: {self.members()}")

    def members(self) -> list[int]:
        """The process ids of the group that are more than an entry in a table."""
        assert self.process is not None
        found = []
        for each in psutil.process_iter():
            try:
                if os.getpgid(each.pid) == self.process.pid and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each.pid)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that compute for it."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]

    def ended(self) -> bool:
        """Whether it is through, or has failed."""
        return self.process is not None and self.process.poll() is not None

    def opened(self) -> bool:
        """Whether this start has taken the store's lock."""
        return self._lock() != self.locked

    def rows(self) -> int:
        """How many trials the store has; a campaign can be looked at while it runs."""
        try:
            with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True)) as connection:
                return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
        except sqlite3.OperationalError:  # it is not there yet
            return 0

    def _lock(self) -> int:
        lock = self.store.with_name(f"{self.store.name}.lock")
        return lock.stat().st_mtime_ns if lock.exists() else 0


@dataclass(eq=False)
class Soak:
    """One form, killed `kills` times. `pace`: seconds that an undisturbed run takes."""

    form: str
    folder: Path
    kills: int
    trials: int
    pace: float
    chance: random.Random
    done: int = 0
    stages: Counter[str] = field(default_factory=Counter)

    def run(self, undisturbed: Path) -> int:
        """Kill campaigns until there have been enough kills; how many problems there were."""
        print(f"{self.form}: {self.wanted} kills", flush=True)
        problems: list[str] = []
        rounds = 0
        while self.done < self.wanted and not problems:
            rounds += 1
            campaign = Campaign(self.folder / f"{self.form}-{rounds}.db", FORMS[self.form], self.trials)
            try:
                (self._kill_workers if self.form in ("worker", "dask") else self._kill_again)(campaign)
            except BrokenPromiseError as problem:
                problems.append(str(problem))
                if not campaign.ended():
                    campaign.kill()
            else:
                problems += differences(undisturbed, campaign.store)
        where = ", ".join(f"{count} {stage}" for stage, count in sorted(self.stages.items()))
        print(
            f"{self.form}: {self.done} kills ({where}) of {rounds} campaigns: {'; '.join(problems) or 'no difference'}"
        )
        return len(problems)

    @property
    def wanted(self) -> int:
        return self.kills if self.form in ("alone", "workers") else max(1, self.kills // 10)

    def _kill_again(self, campaign: Campaign) -> None:
        """Kill one campaign until it is through, or there have been enough kills."""
        while not campaign.ended() and self.done < self.wanted:
            campaign.start()
            stage = self.chance.choice(STAGES)
            self._wait(campaign, stage, self.chance.random())
            if campaign.ended():
                break
            started = campaign.rows()
            campaign.kill(all_of_it=self.form == "alone" or self.chance.random() < 0.5)
            self._killed(stage, campaign.rows(), started)
            campaign.process = None
        if campaign.process is None:
            campaign.start()
        campaign.finish()

    def _kill_workers(self, campaign: Campaign) -> None:
        """Kill workers of one campaign while it runs."""
        campaign.start()
        while self.done < self.wanted:
            before = campaign.rows()
            # Who dies three times over the same block is taken to be killed by it: let something be done between.
            wait_for(lambda: campaign.ended() or campaign.rows() > before, PATIENCE, "nothing is done any more")  # noqa: B023
            time.sleep(self.chance.random() * self.pace / 20)
            workers = [] if campaign.ended() else campaign.workers()
            if not workers:
                break
            self.chance.choice(workers).kill()
            self._killed("running", campaign.rows(), before)
        campaign.finish()

    def _wait(self, campaign: Campaign, stage: str, share: float) -> None:
        """Until the moment to kill; `share` says where in its stage that lies."""
        if stage == "starting":
            time.sleep(share * self.pace / 2)
            return
        wait_for(lambda: campaign.ended() or campaign.opened(), PATIENCE, "the store is not opened")
        if stage == "opening":
            time.sleep(share * 0.05)
            return
        before = campaign.rows()
        wait_for(lambda: campaign.ended() or campaign.rows() > before, PATIENCE, "nothing is done")
        # So that a campaign gets many kills before it is through.
        time.sleep(share * self.pace / 20)

    def _killed(self, stage: str, rows: int, before: int) -> None:
        self.done += 1
        self.stages[stage] += 1
        if rows < before:
            raise BrokenPromiseError(f"{before} rows were there, and {rows} after the kill")
        print(f"  {self.form} {self.done}/{self.wanted}: killed while {stage}, {rows:,} rows", flush=True)


def wait_for(is_true: Callable[[], bool], seconds: float, problem: str) -> None:
    """BrokenPromiseError if it does not come true."""
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            raise BrokenPromiseError(problem)
        time.sleep(0.002)


def differences(undisturbed: Path, killed: Path) -> list[str]:
    """What is not as it should be, by SQLite alone; nothing if all is well."""
    with closing(sqlite3.connect(undisturbed)) as one, closing(sqlite3.connect(killed)) as other:
        try:
            checked = other.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.DatabaseError as error:
            checked = [(str(error),)]
        if checked != [("ok",)]:
            return [f"the store is damaged: {checked[0][0]}"]
        found = [
            f"{what} differs"
            for what, read in (("the settings", _settings), ("the conditions", _conditions))
            if read(one) != read(other)
        ]
        expected, got = _trials(one), _trials(other)
    lost, more = expected - got, got - expected
    twice = [key for key, count in Counter(row[:3] for row in got.elements()).items() if count > 1]
    for word, rows in (("lost or other", lost), ("new or other", more), ("twice", twice)):
        if rows:
            found.append(f"{len(rows)} trials are {word}, such as {next(iter(rows))}")
    return found


def _trials(connection: sqlite3.Connection) -> "Counter[tuple[str, ...]]":
    """As text that tells every number from every other."""
    return Counter(tuple(map(repr, row)) for row in connection.execute(f"SELECT {EQUAL} FROM trials"))


def _conditions(connection: sqlite3.Connection) -> object:
    return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("conditions", "variants")]


def _settings(connection: sqlite3.Connection) -> object:
    settings = json.loads(connection.execute("SELECT settings FROM campaign").fetchone()[0])
    for variant in settings["variants"].values():
        del variant["seconds"]
    return settings


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each form (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--trials", type=int, default=300, help="per cell, of the campaign (default: 300)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="(default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
