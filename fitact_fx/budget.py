"""What a search for thresholds may spend, and what is too little to mean anything."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fitact_fx.errors import RecipeError
from fitact_fx.faults import find_format
from fitact_fx.holdout import FEWEST_SAMPLES
from fitact_fx.options import SHARE, Span, check_numbers, check_whole

FEWEST_IMAGES = 32  # that a search may ask for


@dataclass(frozen=True)
class Search:
    """How much is spent on a search. RecipeError for a budget too small to mean anything.

    `draws` fault lists at each of the bit error `rates`, in memory of this `format`, the same for every edge;
    `images` samples to score on; `parts` of an interval, and `rounds` of splitting one. A site is done sooner once
    the areas of a round's edges differ by `tolerance` at most. `held_out` samples at most, and a fifth of the data at
    most, are for the clean accuracy alone.
    """

    rates: tuple[float, ...] = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5)
    draws: int = 5
    images: int = 64
    parts: int = 4
    rounds: int = 2
    tolerance: float = 0.0
    format: str = "q15.16"
    held_out: int = 1000

    def __post_init__(self) -> None:
        given: Any = self.rates
        rates = given if isinstance(given, Iterable) else (given,)
        object.__setattr__(self, "rates", tuple(rates))
        find_format(self.format)
        if not all(Span(0, 1).holds(rate) for rate in self.rates) or list(self.rates) != sorted(set(self.rates)):
            raise RecipeError(f"rates is {self.rates};\n  give each rate once, ascending, all between 0 and 1")
        check_numbers(self, SHARE, "tolerance")
        fewest = {"draws": 2, "images": FEWEST_IMAGES, "parts": 2, "rounds": 1, "held_out": FEWEST_SAMPLES}
        check_whole(self, None, *fewest)
        for name, least in (("rates", 2), *fewest.items()):
            given = len(self.rates) if name == "rates" else getattr(self, name)
            if given < least:
                raise RecipeError(
                    f"a search with {name}={getattr(self, name)!r} says nothing about thresholds;\n"
                    f"  give {least} {name} or more, or no search at all: ClipAct(share=0.5)"
                )
