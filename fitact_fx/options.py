"""Numbers that a user gives as options: what may be given, and what an error says where something else is."""

import math
from dataclasses import dataclass
from numbers import Integral

from fitact_fx.errors import RecipeError


@dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, each end inside or not, infinity too. NaN lies in none."""

    low: float
    high: float = math.inf
    with_low: bool = False
    with_high: bool = False

    def holds(self, value: object) -> bool:
        """Whether this is a number (and no truth value) inside."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        at_end = (self.with_low and value == self.low) or (self.with_high and value == self.high)
        return at_end or self.low < value < self.high

    def __str__(self) -> str:
        low = f"a number {'from' if self.with_low else 'above'} {self.low:g}{' up' if self.with_low else ''}"
        if self.high == math.inf:
            return f"{low}, or infinity" if self.with_high else low
        return f"{low}, {self.high:g} at most" if self.with_high else f"{low} and below {self.high:g}"


POSITIVE = Span(0)
NOT_NEGATIVE = Span(0, with_low=True)
SHARE = Span(0, 1, with_low=True)


def check_seed(seed: object) -> None:
    """RecipeError unless `seed` is a whole number that torch's generators take."""
    # NumPy's whole numbers are Integral, and no int.
    is_whole = not isinstance(seed, bool) and isinstance(seed, Integral)
    if not is_whole or not -(2**63) <= int(seed) < 2**64:  # type: ignore[call-overload]
        raise RecipeError(f"seed is {seed!r};\n  give a whole number of 64 bits at most")


def check_numbers(options: object, span: Span, *names: str) -> None:
    """RecipeError unless each of these options is a number in the span."""
    for name in names:
        value = getattr(options, name)
        if not span.holds(value):
            raise RecipeError(f"{name} is {value!r};\n  give {span}")


def check_whole(options: object, least: int | None, *names: str) -> None:
    """RecipeError unless each of these options is a whole number, `least` or more where that is said."""
    for name in names:
        value = getattr(options, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or (least is not None and value < least):
            wanted = "a whole number" if least is None else f"a whole number, {least} at least"
            raise RecipeError(f"{name} is {value!r};\n  give {wanted}")


def check_flags(options: object, *names: str) -> None:
    """RecipeError unless each of these options is True or False: any other value would count as one of them."""
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, bool):
            raise RecipeError(f"{name} is {value!r};\n  give True or False")


def check_type(options: object, wanted: type, *names: str) -> None:
    """RecipeError unless each of these options is an instance of that dataclass of options."""
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, wanted):
            raise RecipeError(f"{name} is {value!r};\n  give a {wanted.__name__}, such as {wanted.__name__}()")
