"""How a number is stored: a format turns a tensor into integer words and back.

A format is a frozen value in a file of its own here, beside a function `parse(name)` that returns the
format of that name or None, and `NAMES`, what a user may write. Adding one is adding a file: names are
looked up in the modules of this package.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from fitact_fx.errors import FaultError, known

__all__ = ["Format", "as_format", "find_format", "names"]


class Format(Protocol):
    """How a number is stored. Values and words have the same shape, element by element.

    All methods are plain tensor operations: they give the same bits eagerly and inside a compiled graph.
    """

    @property
    def name(self) -> str:
        """What `find_format` knows it by."""

    @property
    def bits(self) -> int:
        """Bits in one word, numbered from 0, the least significant; the last one is the sign."""

    @property
    def fields(self) -> Mapping[str, range]:
        """The bit numbers of each part of a word, such as "mantissa"; each bit is in one part, no part is empty."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The tensor types whose values can be thought of as stored in this format.

        Each also holds the value of every word written back to it, at most rounded to its own precision.
        """

    def is_own(self, dtype: torch.dtype) -> bool:
        """Whether tensors of that type lie in memory in this format: then `encode` is a view, and exact."""

    def scale(self, values: Tensor, *, each: bool = False) -> Tensor | None:
        """What the words of a whole tensor are multiples of: float64, broadcastable to its shape; None if nothing.

        `each`: one for each index of dimension 0, the samples of an activation.
        """

    def encode(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """Values to int8, int16 or int32 words; what a word cannot represent becomes the nearest that it can.

        `values` may be a part of the tensor that `scale` was made from, if `scale` broadcasts to its shape.
        """

    def decode(self, words: Tensor, scale: Tensor | None = None) -> Tensor:
        """Words, in the type that `encode` gives, to the numbers they stand for; cast them to the tensor's type."""


def find_format(name: str) -> Format:
    """The format called `name`, such as "float32" or "q15.16". FaultError lists the valid ones."""
    if not isinstance(name, str):
        raise FaultError(known("format", name, names()))
    return _found(name)


@lru_cache(maxsize=64)
def _found(name: str) -> Format:
    for module in _modules():
        found: Format | None = module.parse(name)
        if found is not None:
            return found
    raise FaultError(known("format", name, names()))


def as_format(given: str | Format) -> Format:
    """The format itself, or the one of that name. FaultError for anything else."""
    if not isinstance(given, str) and not hasattr(given, "encode"):
        raise FaultError(f"{given!r} is no format;\n  give its name, such as 'q15.16', or what find_format returns")
    return find_format(given) if isinstance(given, str) else given


def names() -> tuple[str, ...]:
    """What a user may write for a format."""
    return tuple(sorted(name for module in _modules() for name in module.NAMES))


def _modules() -> list[Any]:
    return [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
