"""How a store's file is opened, for writing and for reading, and what is said where that fails."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from fitact_fx.campaigns.schema import check, damaged, is_empty
from fitact_fx.errors import CampaignError

T = TypeVar("T")

_FULL = ("SQLITE_FULL", "SQLITE_IOERR")
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")


@contextmanager
def explained(path: object, doing: str) -> Iterator[None]:
    """CampaignError with a remedy in place of SQLite's; `doing` is "written" or "read"."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a mistake of ours, which must not look like one of the disk's
    except sqlite3.DatabaseError as cause:
        raise _explanation(path, doing, cause) from cause
    except OSError as cause:
        raise CampaignError(
            f"{path} cannot be {doing}: {cause};\n  see that this file and its folder can be {doing}"
        ) from cause


def _explanation(path: object, doing: str, cause: sqlite3.DatabaseError) -> CampaignError:
    name = getattr(cause, "sqlite_errorname", "")
    if name.startswith(_DAMAGED):
        return damaged(path, cause)
    if name.startswith(_BUSY):
        return CampaignError(
            f"another program keeps {path} locked ({cause});\n  close it and run the same command again"
        )
    if name.startswith(_FULL) and doing == "written":
        return CampaignError(
            f"{path} cannot be written: {cause};\n  free space on its disk and run the same command again: "
            "nothing that was written before is lost"
        )
    return CampaignError(f"{path} cannot be {doing}: {cause};\n  see that this file and its folder can be {doing}")


def writing(path: Path) -> sqlite3.Connection:
    """A connection that the caller puts into WAL mode, where that may be. Transactions are begun by hand."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def reading(path: Path, shown: object, read: Callable[[sqlite3.Connection], T]) -> T:
    """What `read` finds, at one moment, in a store that another process may be writing. Changes and leaves nothing.

    SQLite reads a database in WAL mode with the help of two files beside it, which it makes and, as a mere reader,
    does not remove. A store that was closed properly has none of them, and is read without them; that also works
    where no file can be made. Otherwise what is not yet in the main file has to be read from the log.
    """
    before = _state(path)
    if not any(before[2:]):
        try:
            found = _read(path, shown, read, "mode=ro&immutable=1")
        except (CampaignError, sqlite3.DatabaseError):
            if _state(path) == before:
                raise
        else:
            if _state(path) == before:
                return found
    # Somebody writes, or was killed.
    try:
        return _read(path, shown, read, "mode=ro")
    except sqlite3.OperationalError:
        return _read_copy(path, shown, read)


def _read(path: Path, shown: object, read: Callable[[sqlite3.Connection], T], how: str) -> T:
    with closing(sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")  # one moment for all that is read
        if is_empty(connection):
            raise CampaignError(
                f"there is no campaign in {shown} yet;\n  run the campaign that makes it, or give another path"
            )
        check(connection, shown)
        return read(connection)


def _read_copy(path: Path, shown: object, read: Callable[[sqlite3.Connection], T]) -> T:
    """A store whose writer was killed, and that lies where a reader cannot put it in order. Its copy can be."""
    with TemporaryDirectory() as folder:
        for one in (path, *_logs(path)):
            if one.exists():
                shutil.copyfile(one, Path(folder) / one.name)
        return _read(Path(folder) / path.name, shown, read, "mode=rw")


def _logs(path: Path) -> list[Path]:
    """What SQLite has beside a database while it is written to, or after a writer was killed."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-journal")]


def _state(path: Path) -> tuple[int, ...]:
    """Changes whenever somebody writes. From the third number on: how much the logs hold."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, *(one.stat().st_size if one.exists() else 0 for one in _logs(path))
