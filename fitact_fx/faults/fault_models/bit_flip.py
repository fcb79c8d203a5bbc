"""Single bits that flip: the fault model of particle strikes in memory."""

from dataclasses import dataclass
from typing import ClassVar

from fitact_fx.faults.bits import Bits, among, chosen_bits
from fitact_fx.faults.effects import FLIP, Effect
from fitact_fx.faults.fault_model import FaultModel, Integers, RawWords
from fitact_fx.faults.formats import Format


@dataclass(frozen=True, kw_only=True)
class BitFlip(FaultModel):
    """Bits flip. At a `rate`, each with that probability: a binomial number over the whole memory.

    `bits` restricts it to a field of the format ("sign", "exponent", "mantissa", "integer", "fraction"), to a
    bit number, or to several of these; a rate is then that of these bits alone.
    """

    bits: Bits = None

    effect: ClassVar[Effect] = FLIP

    @property
    def event(self) -> str:
        return f"a bit{among(self.bits)} flips"

    def ways(self, stored: Format) -> tuple[int, ...]:
        return chosen_bits(self.bits, stored)

    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        return elements, ways


MODELS = {"bit-flip": BitFlip}
