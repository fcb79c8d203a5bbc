"""A fault list as a table for people."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from tabulate import tabulate

from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.tensor_faults import Rows


class Listed(Protocol):
    """What a table needs of a fault list."""

    @property
    def format(self) -> Format: ...
    @property
    def effect(self) -> Effect: ...
    @property
    def rows(self) -> Rows: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


def table(faults: Listed, limit: int) -> str:
    """The first `limit` faults: tensor, element, its index, and the bit with its field, or the word."""
    shown = faults.rows[:limit]
    field_of = {bit: name for name, bits in faults.format.fields.items() for bit in bits}
    digits = -(-faults.format.bits // 4)
    lines = []
    for name, element, value in shown:
        index = ", ".join(map(str, np.unravel_index(element, faults.shapes[name])))
        hit = (f"0x{value:0{digits}x}",) if faults.effect.of_word else (str(value), field_of[value])
        lines.append((name, element, f"[{index}]", *hit))
    headers = ("tensor", "element", "index", *(("word",) if faults.effect.of_word else ("bit", "field")))
    more = f"\n... and {len(faults.rows) - len(shown)} more" if len(faults.rows) > len(shown) else ""
    return tabulate(lines, headers=headers, disable_numparse=True) + more
