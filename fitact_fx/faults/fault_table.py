"""A fault list as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from tabulate import tabulate

from fitact_fx.faults.effects import Effect
from fitact_fx.faults.formats import Format
from fitact_fx.faults.tensor_faults import Rows, TensorFaults


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
    @property
    def tensors(self) -> Sequence[TensorFaults]: ...


def table(faults: Listed, limit: int) -> str:
    """The first `limit` faults: tensor, element, its index, and the bit with its field, or the word."""
    shown = faults.rows[:limit]
    formats = {one.name: one.own or faults.format for one in faults.tensors}
    lines = []
    for name, element, value in shown:
        index = ", ".join(map(str, np.unravel_index(element, faults.shapes[name])))
        stored = formats[name]
        word = f"0x{value:0{-(-stored.bits // 4)}x}"
        hit = (word,) if faults.effect.of_word else (str(value), field_of(stored, value))
        lines.append((name, element, f"[{index}]", *hit))
    headers = ("tensor", "element", "index", *(("word",) if faults.effect.of_word else ("bit", "field")))
    more = f"\n... and {len(faults.rows) - len(shown)} more" if len(faults.rows) > len(shown) else ""
    return tabulate(lines, headers=headers, disable_numparse=True) + more


def field_of(stored: Format, bit: int) -> str:
    """The part of a word that this bit belongs to."""
    return next(name for name, bits in stored.fields.items() if bit in bits)
