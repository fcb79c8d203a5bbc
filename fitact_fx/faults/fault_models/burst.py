"""Adjacent bits that flip together: one particle that upsets several cells."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fitact_fx.errors import FaultError
from fitact_fx.faults.bits import Bits, among, chosen_bits
from fitact_fx.faults.effects import FLIP, Effect
from fitact_fx.faults.fault_model import FaultModel, Integers, RawWords
from fitact_fx.faults.formats import Format
from fitact_fx.faults.places import is_whole


@dataclass(frozen=True, kw_only=True)
class Burst(FaultModel):
    """`width` adjacent bits of one word flip; a place is named by its lowest bit.

    A rate is that of bursts and not of bits: of each place where one fits into the word, and among `bits` if
    these are given (as for `BitFlip`). Where two overlap, a bit that flips twice is as before. FaultError
    for a width below 1, and when drawing for one that fits nowhere.
    """

    width: int
    bits: Bits = None

    effect: ClassVar[Effect] = FLIP

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.width) or self.width < 1:
            raise FaultError(f"a burst is at least 1 bit wide; got {self.width}")

    @property
    def event(self) -> str:
        return f"{self.width} adjacent bits{among(self.bits)} flip"

    def ways(self, stored: Format) -> tuple[int, ...]:
        allowed = chosen_bits(self.bits, stored)
        width = min(self.width, stored.bits + 1)  # however wide, it does not fit
        starts = tuple(bit for bit in allowed if set(range(bit, bit + width)) <= set(allowed))
        if not starts:
            raise FaultError(f"a burst of {self.width} adjacent bits fits nowhere{among(self.bits)} of {stored.name}")
        return starts

    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        bits = (ways[:, None] + np.arange(self.width)).ravel()
        places, times = np.unique(np.repeat(elements, self.width) * stored.bits + bits, return_counts=True)
        return np.divmod(places[times % 2 == 1], stored.bits)


MODELS = {"burst": Burst}
