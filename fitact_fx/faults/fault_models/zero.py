"""Words that become zero: memory that lost its power or was never filled."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fitact_fx.faults.effects import WORD, Effect
from fitact_fx.faults.fault_model import FaultModel, Integers, RawWords
from fitact_fx.faults.formats import Format


@dataclass(frozen=True, kw_only=True)
class Zero(FaultModel):
    """All bits of a word become 0, which is the number 0 in every format; a rate is that of words."""

    effect: ClassVar[Effect] = WORD

    @property
    def event(self) -> str:
        return "a word becomes zero"

    def ways(self, stored: Format) -> tuple[int, ...]:
        return (0,)

    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        return elements, np.zeros_like(elements)


MODELS = {"zero": Zero}
