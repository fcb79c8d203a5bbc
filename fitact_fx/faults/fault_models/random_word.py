"""Words that become random: a fault in addressing or in a whole memory line."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fitact_fx.faults.effects import WORD, Effect
from fitact_fx.faults.fault_model import FaultModel, Integers, RawWords
from fitact_fx.faults.formats import Format


@dataclass(frozen=True, kw_only=True)
class RandomWord(FaultModel):
    """A word is replaced by one drawn uniformly from all words of the format; a rate is that of words."""

    effect: ClassVar[Effect] = WORD

    @property
    def event(self) -> str:
        return "a word becomes a random one"

    def ways(self, stored: Format) -> tuple[int, ...]:
        return (0,)

    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        return elements, (words(len(elements)) >> np.uint64(64 - stored.bits)).astype(np.int64)


MODELS = {"random-word": RandomWord}
