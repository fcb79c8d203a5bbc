"""A campaign on disk: one SQLite database, which any SQLite tool opens. The view `results` is the part to look at.

- `campaign`: one row; `settings` is JSON, with NaN and Infinity as Python and JSON5 write them, since a metric of the
  clean model can be either
- `conditions`, `variants`: numbered in the campaign's order; `trials` refers to them by number
- `trials`: one row per trial and variant. Shares are REAL and exact to the bit. `metrics` is JSON and no column of its
  own, because SQLite makes NULL of a NaN and 0.0 of -0.0
- `sessions`: one row per process that worked on it; `ended` is 0 for one that was killed or still works
- `notes`: what was decided once, key -> JSON

`application_id` says that the file is a campaign's, `user_version` which version of this page it follows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from math import isnan
from sqlite3 import Connection
from typing import Any

from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import CampaignError

APPLICATION = int.from_bytes(b"FitA")
VERSION = 1

_TABLES = """
CREATE TABLE campaign (settings TEXT NOT NULL);
CREATE TABLE conditions (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, trials INTEGER NOT NULL, population INTEGER NOT NULL,
    rate REAL, tensor TEXT, bit INTEGER, site TEXT
);
CREATE TABLE variants (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    condition INTEGER NOT NULL, trial INTEGER NOT NULL, variant INTEGER NOT NULL,
    faults INTEGER NOT NULL, checksum TEXT NOT NULL, accuracy REAL, sdc1 REAL, sdc5 REAL, due REAL NOT NULL,
    metrics TEXT NOT NULL, way TEXT NOT NULL, seconds REAL NOT NULL, error TEXT, session INTEGER,
    PRIMARY KEY (condition, trial, variant)
) WITHOUT ROWID;
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, info TEXT NOT NULL, seconds REAL, trials INTEGER, ended INTEGER NOT NULL
);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE VIEW results AS
    SELECT variants.name AS variant, conditions.name AS cell, trial, faults, checksum, accuracy, sdc1, sdc5, due,
           metrics, way, seconds, error
    FROM trials
    JOIN conditions ON conditions.number = trials.condition
    JOIN variants ON variants.number = trials.variant
    ORDER BY trials.condition, trial, trials.variant;
"""
_COLUMNS = "faults, checksum, accuracy, sdc1, sdc5, due, metrics, way, seconds, error"


def json_text(value: object, what: str) -> str:
    """JSON that gives back the same value. CampaignError, calling the value `what`, if there is none."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as cause:
        raise CampaignError(
            f"{what} cannot be written as JSON: {cause};\n  use text, numbers, lists and dictionaries only"
        ) from cause


def create(connection: Connection, settings: str, conditions: Sequence[Condition]) -> None:
    """Everything a campaign starts with, in one transaction: a store is there whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO campaign VALUES (?)", (settings,))
    connection.executemany(
        "INSERT INTO conditions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        ((number, *astuple(condition)) for number, condition in enumerate(conditions)),
    )
    connection.executemany("INSERT INTO variants VALUES (?, ?)", enumerate(json.loads(settings)["variants"]))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def is_empty(connection: Connection) -> bool:
    """Whether nothing was ever created here, or a process was killed before it had."""
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not _pragma(connection, "application_id")


def check(connection: Connection, path: object) -> None:
    """CampaignError for another program's database, for another version's, and for a damaged one."""
    if _pragma(connection, "application_id") != APPLICATION:
        raise CampaignError(
            f"{path} is an SQLite database of another program;\n  give the path of a campaign's store, or of a new file"
        )
    version = _pragma(connection, "user_version")
    if version != VERSION:
        raise CampaignError(
            f"{path} was written by another version of fitact_fx: its store is version {version}, this one reads "
            f"version {VERSION};\n  use the version that wrote it, or another path for a new campaign"
        )
    # Cheap beside reading the rows, and the only way to notice a page that is zeros or another file's.
    problem = _pragma(connection, "quick_check(1)")
    if problem != "ok":
        raise damaged(path, problem)


def damaged(path: object, problem: object) -> CampaignError:
    """For a file that was a store, or is none at all."""
    return CampaignError(
        f"{path} is cut, damaged or not a campaign's store: {problem};\n"
        "  give the path of a whole one (copy it again if it is a copy), or another path for a new campaign"
    )


def read_settings(connection: Connection) -> dict[str, Any]:
    """What the campaign was made with."""
    found: dict[str, Any] = json.loads(connection.execute("SELECT settings FROM campaign").fetchone()[0])
    return found


def read_conditions(connection: Connection) -> tuple[Condition, ...]:
    """In the campaign's order."""
    query = "SELECT name, trials, population, rate, tensor, bit, site FROM conditions ORDER BY number"
    return tuple(Condition(*found) for found in connection.execute(query))


def read_rows(connection: Connection, variant: str | None = None, cell: str | None = None) -> list[Row]:
    """All, or those of one variant and cell: sorted by condition, trial and variant."""
    chosen = "" if variant is None else "WHERE variant = ? AND cell = ?"
    query = f"SELECT variant, cell, trial, {_COLUMNS} FROM results {chosen}"  # noqa: S608 - our own words
    rows = connection.execute(query, () if variant is None else (variant, cell))
    names = ("variant", "cell", "trial", *_COLUMNS.split(", "))
    found = (dict(zip(names, row, strict=True)) for row in rows)
    return [Row(**{**row, "metrics": json.loads(row["metrics"])}) for row in found]


def read_sessions(connection: Connection) -> tuple[Mapping[str, Any], ...]:
    """In the order they began. What a session that was killed did is counted up to the last trial it added."""
    query = "SELECT info, seconds, trials, ended FROM sessions ORDER BY number"
    return tuple(
        {**json.loads(info), "seconds": seconds, "trials": trials, "ended": bool(ended)}
        for info, seconds, trials, ended in connection.execute(query)
    )


def insert_rows(
    connection: Connection,
    rows: Iterable[Row],
    conditions: Mapping[str, int],
    variants: Mapping[str, int],
    session: int | None,
) -> None:
    """Add rows, inside a transaction of the caller's. sqlite3.IntegrityError for one that is there already."""
    marks = ", ".join("?" * 14)
    connection.executemany(
        f"INSERT INTO trials (condition, trial, variant, {_COLUMNS}, session) VALUES ({marks})",  # noqa: S608
        ((conditions[row.cell], row.trial, variants[row.variant], *_record(row), session) for row in rows),
    )


def _record(row: Row) -> tuple[object, ...]:
    shares = (row.accuracy, row.sdc1, row.sdc5, row.due)
    assert not any(value is not None and isnan(value) for value in shares), "SQLite would make NULL of it"
    metrics = json.dumps({name: float(value) for name, value in row.metrics.items()})
    return row.faults, row.checksum, *shares, metrics, row.way, row.seconds, row.error


def _pragma(connection: Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
