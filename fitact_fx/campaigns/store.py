"""The store of a campaign: one SQLite file that a killed campaign goes on from. `schema.py` says what is in it.

Every `add` is one transaction, so a trial is there whole or not at all. In WAL mode with synchronous=NORMAL a killed
process loses nothing that `add` returned for; where the power fails, the last trials may have to be run again.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from fitact_fx.campaigns import schema
from fitact_fx.campaigns.differences import differences
from fitact_fx.campaigns.locking import Lock
from fitact_fx.campaigns.opening import explained, reading, writing
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import CampaignError

_LEFTOVERS = ("", "-journal", "-wal", "-shm")  # what a store that could not be made may leave


class Store:
    """A campaign's file, open for writing; `with` closes it. No other process can write to it meanwhile.

    `settings` and `conditions` are those it was made with, which are the ones that count.
    """

    def __init__(self, path: str | os.PathLike[str], connection: sqlite3.Connection, lock: Lock) -> None:
        self.path = Path(path)
        self._connection = connection
        self._lock = lock
        self._session: int | None = None
        self._started = 0.0
        self._trials: set[tuple[str, int]] = set()  # of this session
        self.settings = schema.read_settings(connection)
        self.conditions = schema.read_conditions(connection)
        self._variants = {name: number for number, name in enumerate(self.settings["variants"])}
        self._cells = {condition.name: number for number, condition in enumerate(self.conditions)}

    @classmethod
    def create_or_open(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], conditions: Sequence[Condition]
    ) -> Self:
        """A new store at `path`, or the one that is there if it is of the same campaign.

        CampaignError, and no file that was not there before, if it holds another campaign (what differs is named),
        is no store, is damaged, is open elsewhere, or cannot be written, and for settings that are no JSON.
        """
        text = schema.json_text(settings, "the settings of this campaign")
        with explained(path, "written"):
            target = _place(path)
        lock = Lock(target, path)
        is_new = not target.exists()
        connection = None
        try:
            with explained(path, "written"):
                connection = writing(target)
                _prepare(connection, path, text, conditions)
                store = cls(path, connection, lock)
                store.refuse_another_campaign(json.loads(text), conditions)
                return store
        except BaseException:
            if connection is not None:
                connection.close()
            for ending in _LEFTOVERS if is_new else ():
                target.with_name(target.name + ending).unlink(missing_ok=True)
            lock.abandon()
            raise

    @staticmethod
    def read(path: str | os.PathLike[str]) -> CampaignResult:
        """What is in a store now. Takes no lock and changes nothing, so it works beside a campaign that runs.

        CampaignError if there is no such file, or it is no store, of another version, or damaged.
        """
        with explained(path, "read"):
            if not Path(path).is_file():
                raise CampaignError(f"there is no file {path};\n  give the path of a campaign's store")
            return reading(Path(path).resolve(), path, _result)

    @staticmethod
    def is_begun(path: str | os.PathLike[str]) -> bool:
        """Whether a campaign stands there; not where a process was killed while it made one, nor in another file."""
        try:
            return Path(path).is_file() and bool(reading(Path(path).resolve(), path, schema.read_conditions))
        except (CampaignError, OSError, sqlite3.Error):
            return False  # what it is, opening it tells

    def refuse_another_campaign(self, settings: Mapping[str, Any], conditions: Sequence[Condition]) -> None:
        """CampaignError, which names the differences, unless these are the ones this store was made with."""
        found = differences(self.settings, settings, self.conditions, conditions)
        if found:
            sentences = "".join(f";\n  {sentence}" for sentence in found)
            raise CampaignError(
                f"{self.path} holds another campaign{sentences};\n"
                "  give the same arguments to resume, or another path for a new campaign"
            )

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows, all of them or none. CampaignError if the disk is full: what was there before still is."""
        rows = list(rows)
        new = {(row.cell, row.trial) for row in rows} - self._trials
        with self._transaction():
            schema.insert_rows(self._connection, rows, self._cells, self._variants, self._session)
            # As far as it got, should it be killed now.
            so_far = (perf_counter() - self._started, len(self._trials) + len(new), self._session)
            self._connection.execute("UPDATE sessions SET seconds = ?, trials = ? WHERE number = ?", so_far)
        self._trials |= new

    def done(self) -> dict[tuple[str, str], set[int]]:
        """(variant, cell) -> the trials that are there; every pair of the campaign is a key."""
        found: dict[tuple[str, str], set[int]] = {
            (variant, cell): set() for cell in self._cells for variant in self._variants
        }
        variants, cells = list(self._variants), list(self._cells)
        with explained(self.path, "read"):
            for variant, cell, trial in self._connection.execute("SELECT variant, condition, trial FROM trials"):
                found[variants[variant], cells[cell]].add(trial)
        return found

    def rows(self, variant: str, cell: str) -> list[Row]:
        """In trial order."""
        with explained(self.path, "read"):
            return schema.read_rows(self._connection, variant, cell)

    def result(self) -> CampaignResult:
        """Everything that is there now."""
        with explained(self.path, "read"):
            return _result(self._connection)

    def note(self, key: str) -> Any:
        """What was noted under `key`, None if nothing was."""
        with explained(self.path, "read"):
            found = self._connection.execute("SELECT value FROM notes WHERE name = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_note(self, key: str, value: object) -> None:
        """Note a JSON value, in place of what was noted before."""
        text = schema.json_text(value, f"the note {key!r}")
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, text))

    def begin_session(self, info: Mapping[str, Any]) -> None:
        """This process starts to work; `info`, JSON, says when, on what and with which versions."""
        text = schema.json_text(info, "what is told about this session")
        with self._transaction():
            made = self._connection.execute(
                "INSERT INTO sessions (info, seconds, trials, ended) VALUES (?, 0, 0, 0)", (text,)
            )
        self._session, self._started, self._trials = made.lastrowid, perf_counter(), set()

    def end_session(self, seconds: float, trials: int) -> None:
        """It is done, after so long and so many trials. One that was killed has what it added until then instead."""
        with self._transaction():
            change = "UPDATE sessions SET seconds = ?, trials = ?, ended = 1 WHERE number = ?"
            self._connection.execute(change, (seconds, trials, self._session))
        self._session = None

    def close(self) -> None:
        """Leave one file, with everything in it, and let others write. Never fails: the log would be as good."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with suppress(sqlite3.Error):
            self._connection.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with explained(self.path, "written"):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk has SQLite roll back by itself, and a second time would be an error.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _place(path: str | os.PathLike[str]) -> Path:
    """The file itself, by whatever link it was named: two names must not mean two locks."""
    target = Path(path).resolve()
    if target.is_dir() or not target.parent.is_dir():
        problem = f"{path} is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise CampaignError(f"{problem};\n  give the path of a file in a folder that exists")
    return target


def _prepare(connection: sqlite3.Connection, path: object, settings: str, conditions: Sequence[Condition]) -> None:
    """Make a store of a file without anything in it; see that any other file is one."""
    if schema.is_empty(connection):
        schema.create(connection, settings, conditions)
    schema.check(connection, path)
    # Only now: this changes the file, which could have been another program's.
    connection.execute("PRAGMA journal_mode = WAL")


def _result(connection: sqlite3.Connection) -> CampaignResult:
    return CampaignResult(
        schema.read_settings(connection),
        schema.read_conditions(connection),
        tuple(schema.read_rows(connection)),
        schema.read_sessions(connection),
    )
