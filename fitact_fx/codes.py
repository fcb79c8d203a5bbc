"""Bounds in few bits: a tensor of bounds as words of 8 or 16 bits, rounded outwards, and back.

Stored as "bfloat16", a side of a site is one buffer, `upper_bfloat16`. Stored as "int8" it is codes and one scale:

- `upper_uint8` where every bound lies on its own side of zero (an upper one above, a lower one below): a code c
  stands for c * scale, away from zero, and 255 for no bound;
- `upper_int8` where some do not: c * scale, and -128 for no bound;
- `upper_scale`, a float32 of 16 significant bits, so that each product is exact in float32.

Outwards means up for an upper bound and down for a lower one: whatever passed before passes still. Zero stays zero
and infinity infinity. A finite bound beyond the largest number of a format becomes that number, and no infinity.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fitact_fx.errors import RecipeError, known

FULL = "float32"
FORMATS = (FULL, "bfloat16", "int8")
SCALE = "scale"

_WORDS = {"bfloat16": torch.bfloat16, "uint8": torch.uint8, "int8": torch.int8}
_FREE = {torch.uint8: 255, torch.int8: -128}  # the code of a bound that lets everything pass
_LARGEST = {torch.uint8: 254, torch.int8: 127}
_SCALE_BITS = 16  # of significance: with 8 of a code they fill the 24 of a float32


def require_format(stored: object) -> str:
    """The name of a format that bounds can be stored in; RecipeError lists them."""
    if not isinstance(stored, str) or stored not in FORMATS:
        raise RecipeError(known("format of bounds", str(stored), FORMATS))
    return stored


def word_names(side: str) -> tuple[str, ...]:
    """What a buffer of words of that side may be called; one of them is there at most."""
    return tuple(f"{side}_{form}" for form in _WORDS)


def buffer_names(side: str) -> tuple[str, ...]:
    """The same with the scale."""
    return (*word_names(side), f"{side}_{SCALE}")


def words_of(buffer: str) -> str | None:
    """The number format that a buffer of that name lies in, whatever the model's; None for full precision."""
    form = buffer.partition("_")[2]
    return FULL if form == SCALE else form if form in _WORDS else None


def stored_as(buffer: str) -> str:
    """The format of `FORMATS` that has a buffer of that name."""
    form = buffer.partition("_")[2]
    return "bfloat16" if form == "bfloat16" else "int8" if form else FULL


def is_packed(memory: Mapping[str, Tensor]) -> bool:
    """Whether any of these buffers holds words, and no bounds."""
    return any(words_of(name) is not None for name in memory)


def require_words(memory: Mapping[str, Tensor]) -> None:
    """RecipeError unless these are the buffers of one site as `encoded` makes them."""
    for side in {name.partition("_")[0] for name in memory}:
        own = {name.partition("_")[2]: held for name, held in memory.items() if name.partition("_")[0] == side}
        scale = own.pop(SCALE, None)
        fits = len(own) == 1 and all(held.dtype == _WORDS.get(form) for form, held in own.items())
        if scale is not None:
            fits = fits and scale.dtype == torch.float32 and scale.ndim == 0 and bool((scale >= 0) & scale.isfinite())
        if not fits or (scale is None) != ("bfloat16" in own):
            raise RecipeError(f"{', '.join(sorted(memory))} are no words of bounds;\n  save the model again")


def encoded(bound: Tensor, side: str, stored: str) -> dict[str, Tensor]:
    """Buffers by name, for a bound of any shape and float type without NaN."""
    outward = bound.detach().double() * _sign(side)
    if stored == "bfloat16":
        return {f"{side}_bfloat16": _up_to_bfloat16(outward) * _sign(side)}
    dtype = torch.uint8 if bool((outward >= 0).all()) else torch.int8
    scale = _scale(outward, _LARGEST[dtype])
    codes = _codes(outward, scale.double(), _LARGEST[dtype])
    if dtype == torch.int8:
        codes = codes * _sign(side)
    words = torch.where(outward.isinf(), float(_FREE[dtype]), codes).to(dtype)
    return {f"{side}_{str(dtype).removeprefix('torch.')}": words, f"{side}_{SCALE}": scale}


def bound_in(memory: Mapping[str, Tensor | None], side: str) -> Tensor | None:
    """What the words of that side stand for, if these buffers hold any."""
    found = (memory.get(name) for name in word_names(side))
    words = next((held for held in found if held is not None), None)
    return None if words is None else decoded(words, memory.get(f"{side}_{SCALE}"), side)


def decoded(words: Tensor, scale: Tensor | None, side: str) -> Tensor:
    """The bounds that these words stand for, exact in float32."""
    if words.dtype == torch.bfloat16 or scale is None:
        return words.float()
    sign = _sign(side)
    # The sign is the code's and not the product's: zero times anything stays +0.
    codes = words.to(torch.int16) * (sign if words.dtype == torch.uint8 else 1)
    return torch.where(words == _FREE[words.dtype], sign * torch.inf, codes.float() * scale)


def _sign(side: str) -> int:
    """Which way is outwards."""
    return 1 if side == "upper" else -1


def _up_to_bfloat16(values: Tensor) -> Tensor:
    """float64 -> the least bfloat16 that is not below it."""
    largest = torch.finfo(torch.bfloat16).max
    near = torch.where(values.isinf(), values, values.clamp(-largest, largest)).to(torch.bfloat16)
    raw = near.view(torch.int16)
    # One step up is away from zero where the sign bit is clear, and towards zero where it is set.
    above = torch.where(raw >= 0, raw + 1, raw - 1).view(torch.bfloat16)
    return torch.where((near.double() < values) & (near != largest), above, near)


def _scale(outward: Tensor, largest: int) -> Tensor:
    """The least float32 of so few significant bits that `largest` steps of it reach over every finite bound."""
    finite = torch.where(outward.isfinite(), outward, 0.0)
    above, below = (float(each.max()) / largest if each.numel() else 0.0 for each in (finite, -finite))
    # What lies below zero may come nearer to it. A longer step would bring it a whole code nearer, at every storing.
    scale = max(_rounded(above, math.ceil), _rounded(below, math.floor))
    scale = min(scale, _rounded(torch.finfo(torch.float32).max / largest, math.floor))
    return torch.tensor(scale, dtype=torch.float32, device=outward.device)


def _rounded(number: float, to_whole: Callable[[float], int]) -> float:
    """To `_SCALE_BITS` significant bits, or to what float32 has left of them where it ends."""
    _, exponent = math.frexp(number)
    last = max(exponent - _SCALE_BITS, -149)
    return math.ldexp(to_whole(math.ldexp(number, -last)), last)


def _codes(outward: Tensor, scale: Tensor, largest: int) -> Tensor:
    """The least whole numbers of steps that are not below; float64."""
    finite = torch.where(outward.isfinite(), outward, 0.0)
    steps = (finite / torch.where(scale > 0, scale, 1.0)).ceil()
    return (steps + (steps * scale < finite)).clamp(-largest, largest)
