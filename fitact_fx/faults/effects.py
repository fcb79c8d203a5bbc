"""What a fault does to the word it hits.

One formula covers every effect: `faulty = (word & ~clear) ^ flip`. Each bit of the word is kept, inverted,
set or cleared, and a word can be replaced altogether.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitact_fx.errors import FaultError, known

Words = NDArray[np.int64]


@dataclass(frozen=True)
class Effect:
    """A row of a fault list names a bit, which flips or is stuck, or (`of_word`) the word that is put in place.

    `clears` and `flips` say what happens to the bits that are named.
    """

    name: str
    clears: bool
    flips: bool
    of_word: bool = False

    def masks(self, hit: Words) -> tuple[Words | None, Words]:
        """(clear, flip) for words whose bits `hit` are named; for an effect on words, `hit` is the new word.

        `clear` is None where nothing is cleared.
        """
        if self.of_word:
            return np.full_like(hit, -1), hit
        return hit if self.clears else None, hit if self.flips else np.zeros_like(hit)


FLIP = Effect("flip", clears=False, flips=True)
STUCK_AT_0 = Effect("stuck-at-0", clears=True, flips=False)
STUCK_AT_1 = Effect("stuck-at-1", clears=True, flips=True)
WORD = Effect("word", clears=True, flips=True, of_word=True)

_BY_NAME = {effect.name: effect for effect in (FLIP, STUCK_AT_0, STUCK_AT_1, WORD)}


def find_effect(name: str) -> Effect:
    """The effect of that name; FaultError lists the valid ones."""
    if name not in _BY_NAME:
        raise FaultError(known("effect", name, _BY_NAME))
    return _BY_NAME[name]
