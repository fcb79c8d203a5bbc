"""One process at a time works on a store. The kernel holds the lock and drops it when the process dies, however."""

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fitact_fx.errors import CampaignError


class Lock:
    """Holds PATH.lock. That the file is there says nothing: it stays, with a line about its last holder.

    CampaignError where another process holds it, or this one does already, and where the folder takes no files.
    """

    def __init__(self, path: Path, shown: object) -> None:
        self._file = path.with_name(path.name + ".lock")
        self._is_new = not self._file.exists()
        # Not bound to a thread: a store may be closed by another thread than the one that opened it.
        self._lock = FileLock(self._file, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as cause:
            if not self._file.exists():  # as in /proc, where there is a folder that takes no files
                raise _no_place(shown, "no file can be made beside it") from cause
            raise self._refused(shown) from None
        except OSError as cause:
            raise _no_place(shown, cause) from cause
        self._sign()

    def release(self) -> None:
        """Give it back. The file stays: to remove it under others' hands could let in two at once."""
        self._lock.release()

    def abandon(self) -> None:
        """Give it back as if it had never been taken: for a store that was refused."""
        if self._is_new:
            with suppress(OSError):
                self._file.unlink()
        self._lock.release()

    def _sign(self) -> None:
        """Say who holds it, where that is possible: the lock itself does not need it."""
        since = datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds")
        with suppress(OSError, UnicodeDecodeError):
            before = self._file.read_text("utf-8")
            if not before or before.startswith("pid "):  # never over something of the user's that has this name
                self._file.write_text(f"pid {os.getpid()} on {socket.gethostname()} since {since}", "utf-8")

    def _refused(self, shown: object) -> CampaignError:
        holder = ""
        with suppress(OSError, UnicodeDecodeError):
            holder = self._file.read_text("utf-8").strip()
        if holder.startswith(f"pid {os.getpid()} on {socket.gethostname()} "):
            return CampaignError(f"{shown} is open in this process already;\n  close that store first")
        known = f" ({holder})" if holder.startswith("pid ") else ""
        return CampaignError(
            f"another process works on {shown}{known};\n"
            "  wait until it is done or stop it, or give another path; its results can be read meanwhile"
        )


def _no_place(shown: object, cause: object) -> CampaignError:
    return CampaignError(
        f"{shown} cannot be opened for writing: {cause};\n  give the path of a file in a folder that can be written"
    )
