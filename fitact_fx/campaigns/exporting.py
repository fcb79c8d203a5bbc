"""A campaign's rows for other programs: a pandas table, CSV, Parquet and JSON."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import CampaignError

if TYPE_CHECKING:
    from pandas import DataFrame

_SUFFIXES = (".csv", ".parquet", ".json")
_NOT_IN_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_BEFORE = {
    "variant": "string",
    "cell": "string",
    "rate": "float64",
    "tensor": "string",
    "bit": "Int64",
    "site": "string",
}
_MEASURED = {"trial": "int64", "faults": "int64"} | dict.fromkeys(("accuracy", "sdc1", "sdc5", "due"), "float64")
_BEHIND = {"way": "string", "seconds": "float64", "error": "string", "checksum": "string"}


def frame(conditions: Sequence[Condition], rows: Sequence[Row], metrics: Sequence[str]) -> "DataFrame":
    """One line per row. The types do not depend on which values are missing, so tables of campaigns can be joined."""
    from pandas import DataFrame

    types = _BEFORE | _MEASURED | dict.fromkeys(metrics, "float64") | _BEHIND
    about = {condition.name: condition for condition in conditions}

    def column(name: str) -> list[object]:
        if name in metrics:
            return [row.metrics.get(name) for row in rows]
        if name in ("rate", "tensor", "bit", "site"):
            return [getattr(about[row.cell], name) for row in rows]
        return [getattr(row, name) for row in rows]

    return DataFrame({name: column(name) for name in types}).astype(types)


def as_json(
    settings: Mapping[str, Any],
    conditions: Sequence[Condition],
    sessions: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Plain JSON values; "NaN", "Infinity" and "-Infinity" stand for numbers that JSON does not have."""
    found = {"settings": settings, "conditions": conditions, "sessions": sessions, "rows": rows}
    return {name: _plain(value) for name, value in found.items()}


def export(path: str | os.PathLike[str], table: "Callable[[], DataFrame]", everything: Callable[[], object]) -> None:
    """Write what the ending of `path` asks for, whole, or leave `path` as it was."""
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise CampaignError(f"{path} ends in {target.suffix or 'nothing'!r};\n  export to .csv, .parquet or .json")
    if target.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise CampaignError("a .parquet file needs pyarrow, which is not here;\n  pip install fitact-fx[parquet]")
    if not target.parent.is_dir() or target.is_dir():
        problem = f"{path} is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise CampaignError(f"{problem};\n  give the path of a file in a folder that exists")
    # In the same folder: only within one file system is a rename all or nothing.
    temporary = target.with_name(f".{uuid4().hex}.tmp")
    try:
        _write(temporary, target.suffix.lower(), table, everything)
        temporary.replace(target)
    except OSError as cause:
        raise CampaignError(
            f"{path} cannot be written: {cause};\n  free space on its disk, or give a path that can be written"
        ) from cause
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, suffix: str, table: "Callable[[], DataFrame]", everything: Callable[[], object]) -> None:
    if suffix == ".json":
        path.write_text(json.dumps(everything(), allow_nan=False, indent=1, ensure_ascii=False), "utf-8")
    elif suffix == ".csv":
        table().to_csv(path, index=False)
    else:
        table().to_parquet(path, index=False, engine="pyarrow")


def _plain(value: object) -> Any:
    match value:
        case Condition() | Row():
            return _plain(asdict(value))
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case float() if not isfinite(value):
            return _NOT_IN_JSON[str(value)]
    return value
