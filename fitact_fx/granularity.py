"""How many bounds a site has: from the shape of an activation to the shape of its bound.

A granularity is a value with two questions: which shape the bound has, and over which
dimensions of an activation its elements share one bound. Dimension 0 is the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from fitact_fx.errors import RecipeError, known

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Neuron:
    """One bound per element of the activation, batch excluded: (N, C, H, W) -> (1, C, H, W)."""

    name = "neuron"

    def bound_shape(self, shape: Shape) -> Shape:
        return (1, *shape[1:]) if shape else ()

    def shared_dims(self, shape: Shape) -> Shape:
        """The dimensions over which elements share a bound."""
        return (0,) if shape else ()


@dataclass(frozen=True)
class Channel:
    """One bound per channel: (N, C, H, W) -> (1, C, 1, 1).

    `dim` says where the channel lies (1 behind a convolution, -1 behind a linear layer); None while
    that is not known. A rank-2 activation has its channel in dimension 1 whatever `dim` says.
    `rank` is that of every activation, batch included, if it is known; another one raises RecipeError.
    """

    dim: int | None = None
    rank: int | None = None
    name = "channel"

    def bound_shape(self, shape: Shape) -> Shape:
        kept = self._dim(shape)
        return tuple(size if dim == kept else 1 for dim, size in enumerate(shape))

    def shared_dims(self, shape: Shape) -> Shape:
        """The dimensions over which elements share a bound."""
        kept = self._dim(shape)
        return tuple(dim for dim in range(len(shape)) if dim != kept)

    def _dim(self, shape: Shape) -> int:
        if self.rank not in (None, len(shape)):
            # An input without its batch dimension has its channel one place further to the front.
            raise RecipeError(f"activation of rank {len(shape)}, channel known for rank {self.rank}")
        dim = 1 if len(shape) == 2 else self.dim
        if dim is None or not -len(shape) <= dim < len(shape):
            raise RecipeError(f"activation of rank {len(shape)}, channel dimension {self.dim}")
        return dim % len(shape)


@dataclass(frozen=True)
class Layer:
    """One bound for the whole site: any shape -> ()."""

    name = "layer"

    def bound_shape(self, shape: Shape) -> Shape:
        return ()

    def shared_dims(self, shape: Shape) -> Shape:
        """The dimensions over which elements share a bound: all of them."""
        return tuple(range(len(shape)))


Granularity = Neuron | Channel | Layer
GranularityRule = str | Mapping[str, str]

_BY_NAME: dict[str, Granularity] = {value.name: value for value in (Neuron(), Channel(), Layer())}
NAMES = tuple(_BY_NAME)


def named(name: str) -> Granularity:
    """The granularity of that name; RecipeError lists the valid ones."""
    if name not in NAMES:
        raise RecipeError(known("granularity", name, NAMES))
    return _BY_NAME[name]


def at_dim(granularity: Granularity, dim: int | None, rank: int | None = None) -> Granularity:
    """The same granularity, told where the channel lies, in activations of which rank."""
    return replace(granularity, dim=dim, rank=rank) if isinstance(granularity, Channel) else granularity


def resolve(rule: GranularityRule, sites: tuple[str, ...]) -> dict[str, Granularity]:
    """Site name -> granularity. `rule` is one name, or globs over site names; the last match wins.

    Raises RecipeError for an unknown granularity and for a pattern that matches no site.
    """
    patterns = rule if isinstance(rule, Mapping) else {"*": rule}
    chosen: dict[str, Granularity] = {}
    for pattern, name in patterns.items():
        hit = matching(pattern, sites)
        chosen.update(dict.fromkeys(hit, named(name)))
    return chosen


def matching(pattern: str, sites: tuple[str, ...]) -> tuple[str, ...]:
    """The site names a glob matches; RecipeError if there is none, with a few that exist."""
    hit = tuple(name for name in sites if fnmatchcase(name, pattern))
    if not hit:
        shown = ", ".join(sites[:5]) + (", ..." if len(sites) > 5 else "")
        raise RecipeError(f"the pattern {pattern!r} matches no site; the sites are {shown}")
    return hit
