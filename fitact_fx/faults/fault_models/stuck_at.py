"""Memory cells that are stuck at one value."""

from dataclasses import dataclass
from functools import partial

from fitact_fx.errors import FaultError
from fitact_fx.faults.bits import Bits, among, chosen_bits
from fitact_fx.faults.effects import STUCK_AT_0, STUCK_AT_1, Effect
from fitact_fx.faults.fault_model import FaultModel, Integers, RawWords
from fitact_fx.faults.formats import Format


@dataclass(frozen=True, kw_only=True)
class StuckAt(FaultModel):
    """Bits become `value`, 0 or 1, whatever they were: half of them or so were so anyway.

    What is written to a parameter while the faults are applied is not caught: a stuck cell is one that nobody
    writes to, as in inference. An activation is hit each time it is computed.

    `bits` restricts it as for `BitFlip`. FaultError for another `value`.
    """

    value: int
    bits: Bits = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value not in (0, 1):
            raise FaultError(f"a bit is stuck at 0 or at 1; got {self.value}")

    @property
    def effect(self) -> Effect:
        return STUCK_AT_1 if self.value else STUCK_AT_0

    @property
    def event(self) -> str:
        return f"a bit{among(self.bits)} is stuck at {self.value}"

    def ways(self, stored: Format) -> tuple[int, ...]:
        return chosen_bits(self.bits, stored)

    def rows(self, elements: Integers, ways: Integers, words: RawWords, stored: Format) -> tuple[Integers, Integers]:
        return elements, ways


MODELS = {"stuck-at-0": partial(StuckAt, value=0), "stuck-at-1": partial(StuckAt, value=1)}
