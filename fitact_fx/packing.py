"""In how many bytes a hardened model keeps its bounds, and bounds as plain floats for as long as they are learned."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fitact_fx import codes
from fitact_fx.bounded import bounded_sites, restored_on_error
from fitact_fx.errors import SiteError


def store_bounds(hard: nn.Module, stored: str) -> None:
    """Keep the bounds in fewer bytes: "bfloat16" (2 an element), "int8" (1), or "float32", the model's own type again.

    In place, as `calibrate`; the words are what the model holds, saves, and gets faults in. Every bound is rounded
    outwards, an upper one up and a lower one down, so that what passed before passes still; infinity stays
    infinity and zero zero. (Only a finite bound beyond the largest number of bfloat16, 3.3895e38, is rounded inwards,
    to that number: infinity would be no bound at all.) "int8" is a code of 8 bits for each bound and one float32 scale
    for each side of a site, 1/254 of its greatest bound (1/127 where bounds of both signs share a side). That is how
    far a bound moves at most: a small bound beside a large one of its site gains most by it, and protects less.

    `bounds` gives the rounded values, which a return to "float32" keeps: the rounding is not undone. The format
    stays with the model: bounds that are calibrated, learned (in full precision), or set by hand later on are stored
    in it again, in a model that has none yet as well. A state or file that is loaded brings its own format.
    Raises RecipeError for another format, SiteError for a model that is not hardened.
    """
    codes.require_format(stored)
    sites = bounded_sites(hard)
    if not sites:
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  pass what fitact_fx.harden returned")
    for bounded in sites.values():
        bounded.store(stored)


@contextmanager
def in_full_precision(hard: nn.Module) -> Iterator[None]:
    """Inside, bounds are floats of the model's type; behind, stored as before, after an error in the very words."""
    packed = [(bounded, bounded.stored) for bounded in bounded_sites(hard).values() if bounded.stored != codes.FULL]
    with restored_on_error(hard):
        for bounded, _ in packed:
            bounded.store(codes.FULL)
        yield
        for bounded, stored in packed:
            bounded.store(stored)
