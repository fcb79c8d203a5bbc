"""Which bits of a word a fault may hit, in the words of a user."""

from collections.abc import Sequence
from operator import index

from fitact_fx.errors import FaultError, known
from fitact_fx.faults.formats import Format

# A field of the format, a bit number, or several of either; None for all.
Bits = str | int | Sequence[str | int] | None


def chosen_bits(bits: Bits, stored: Format) -> tuple[int, ...]:
    """The bit numbers, ascending. FaultError for a field that the format has not, and a bit outside its word."""
    if bits is None:
        return tuple(range(stored.bits))
    chosen: set[int] = set()
    for each in _several(bits):
        if isinstance(each, str):
            if each not in stored.fields:
                raise FaultError(known(f"field of {stored.name}", each, stored.fields))
            chosen.update(stored.fields[each])
        elif not hasattr(each, "__index__"):
            raise FaultError(f"{each!r} is no bit;\n  give bit numbers, or fields of the format")
        elif 0 <= index(each) < stored.bits:
            chosen.add(index(each))
        else:
            raise FaultError(f"bit {each} lies outside {stored.name}, whose bits are 0 to {stored.bits - 1}")
    if not chosen:
        raise FaultError("no bits are left to hit;\n  leave `bits` out for all of them")
    return tuple(sorted(chosen))


def bits_within(bits: Bits, stored: Format) -> Bits:
    """Those of `bits` that this format has, which need not have any of them."""
    if bits is None:
        return None
    several = _several(bits)
    return tuple(each for each in several if each in (stored.fields if isinstance(each, str) else range(stored.bits)))


def among(bits: Bits) -> str:
    """` among the exponent bits`, or nothing for all bits."""
    if bits is None:
        return ""
    words = (f"the {each} bits" if isinstance(each, str) else f"bit {each}" for each in _several(bits))
    return f" among {', '.join(words)}"


def _several(bits: str | int | Sequence[str | int]) -> Sequence[str | int]:
    # Not isinstance(bits, int): NumPy's numbers are whole numbers too.
    return bits if isinstance(bits, Sequence) and not isinstance(bits, str) else [bits]
