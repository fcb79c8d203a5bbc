"""Fault lists on disk: one safetensors file, which any safetensors reader opens.

Two arrays, one entry per fault, tensor after tensor: `elements` (int64, counted row by row) and `bits`
(uint8, 0 the least significant). The metadata key `fitact_fx.fault_list` holds JSON: `version` (1),
`format`, `rate`, `seed`, `trial`, `tensors` (a list of `name`, `shape` and `faults`, the number of entries
in the arrays that are its own), and `checksum` (BLAKE2b of all this).
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fitact_fx.errors import FaultError

Header = dict[str, Any]
Elements = NDArray[np.int64]
Bits = NDArray[np.uint8]

_KEY = "fitact_fx.fault_list"
_VERSION = 1


def write(path: str | os.PathLike[str], header: Header, elements: Elements, bits: Bits) -> None:
    """Write the file whole, or leave `path` as it was."""
    metadata = {_KEY: json.dumps({"version": _VERSION} | header)}
    content = save({"elements": elements, "bits": bits}, metadata)
    target = Path(path)
    # In the same folder: only within one file system is a rename all or nothing.
    temporary = target.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[Header, Elements, Bits]:
    """What `write` wrote. FaultError if the file is cut, not safetensors, or not a fault list."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise FaultError(f"{path} is a safetensors file without a fault list in it")
            header = json.loads(metadata[_KEY])
            elements, bits = file.get_tensor("elements"), file.get_tensor("bits")
    except (SafetensorError, ValueError) as cause:
        raise FaultError(f"{path} is cut or not a fault list: {cause}") from cause
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        raise FaultError(f"{path} was saved by another version; this one reads version {_VERSION}")
    return header, elements, bits
