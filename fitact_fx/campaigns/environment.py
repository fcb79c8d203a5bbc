"""Where and with what a campaign was run, for whoever has to believe it."""

import os
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_TOLD = ("fitact-fx", "torch", "numpy", "scipy")


def environment(threads: int, workers: int) -> dict[str, Any]:
    """JSON values: when it started, versions, machine, processor, threads of each worker and how many workers."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _TOLD},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads,
        "workers": workers,
        "pid": os.getpid(),
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
