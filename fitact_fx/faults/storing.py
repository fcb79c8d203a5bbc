"""Fault lists on disk: one safetensors file, which any safetensors reader opens.

Two arrays, one entry per fault, tensor after tensor: `elements` (int64, counted row by row) and `values`
(uint32). The metadata key `fitact_fx.fault_list` holds JSON:

- `version`: 2; `format`: how numbers are stored, such as "q15.16"
- `effect`: what `values` are and what is done with them. "flip", "stuck-at-0" and "stuck-at-1": the bit of the
  element's word, 0 the least significant; "word": the word that takes its place
- `tensors`: a list of `name`, `shape` and `faults`, the number of entries in the arrays that are its own. Activations
  are called `<place in the model>@after` or `@before`, which is the side of the bound, with `:permanent` behind it if
  every sample is hit. `format` as well, if its words have one of their own: bounds that are stored in few bits
- `fingerprint`: BLAKE2b of the sorted [name, shape] pairs as JSON; `checksum`: BLAKE2b of everything
- `fault`, `seed`, `trial`: where the faults come from; `fault` is a sentence for people
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
Values = NDArray[np.uint32]

_KEY = "fitact_fx.fault_list"
_VERSION = 2


def write(path: str | os.PathLike[str], header: Header, elements: Elements, values: Values) -> None:
    """Write the file whole, or leave `path` as it was. FaultError if there is no such folder."""
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        problem = f"{target} is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise FaultError(f"{problem};\n  give the path of a file in a folder that exists")
    metadata = {_KEY: json.dumps({"version": _VERSION} | header)}
    content = save({"elements": elements, "values": values}, metadata)
    # In the same folder: only within one file system is a rename all or nothing.
    temporary = target.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[Header, Elements, Values]:
    """What `write` wrote. FaultError if the file is cut, not safetensors, or not a fault list."""
    if not Path(path).is_file():
        raise FaultError(f"there is no file {path};\n  pass the path that FaultList.save wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise FaultError(f"{path} is a safetensors file without a fault list in it")
            header = json.loads(metadata[_KEY])
            if not isinstance(header, dict) or header.get("version") != _VERSION:
                raise FaultError(f"{path} was saved by another version; this one reads version {_VERSION}")
            elements, values = file.get_tensor("elements"), file.get_tensor("values")
    except (SafetensorError, ValueError) as cause:
        raise FaultError(f"{path} is cut or not a fault list: {cause}") from cause
    return header, elements, values
