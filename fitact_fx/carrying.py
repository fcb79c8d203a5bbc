"""Bounds that hold further on: what a site takes over from the sites that its values come from."""

from collections.abc import Callable, Collection, Mapping

import torch

from fitact_fx.bounded import Bounded


def carry(sites: Mapping[str, Bounded], changed: Collection[str] | None = None) -> None:
    """Set every carried bound from its sources: the least lower and the greatest upper one, over all their elements.

    A source without a lower bound has its own least value there (0 for ReLU); a side that is free in one source is
    free. `sites` are in call order, as a source may itself be a carrier. With `changed`, only what follows these
    sites, and not those themselves. A carrier whose sources are not all set stays as it is.
    """
    moved = set(sites if changed is None else changed)
    for name, bounded in sites.items():
        sources = [sites[each] for each in bounded.spec.carries]
        is_named = changed is not None and name in changed
        if not sources or is_named or moved.isdisjoint(bounded.spec.carries):
            continue
        if all(source.is_set for source in sources):
            bounded.set_bounds(*carried(sources, bounded.spec.includes_zero))
            moved.add(name)


def carried(sources: Collection[Bounded], includes_zero: bool) -> tuple[float | None, float | None]:
    """(lower, upper) of what is made of these sites' values; `includes_zero` if zeros are among them."""
    zero = [0.0] if includes_zero else []
    upper = _extreme(max, [_greatest(source) for source in sources], zero)
    lower = None  # where no source has one, the carrier has their least value by itself
    if any(source.lower is not None for source in sources):
        lower = _extreme(min, [_least(source) for source in sources], zero)
    return (lower, upper) if (lower, upper) != (None, None) else (-torch.inf, torch.inf)


def _extreme(of: Callable[[list[float]], float], ends: list[float | None], zero: list[float]) -> float | None:
    """The least or the greatest of these ends, and of zero; None, a free side, where one of them is free."""
    held = [end for end in ends if end is not None]
    return of([*held, *zero]) if len(held) == len(ends) else None


def _least(source: Bounded) -> float | None:
    if source.lower is not None:
        return float(source.lower.min())
    return None if source.minimum == -torch.inf else source.minimum


def _greatest(source: Bounded) -> float | None:
    return None if source.upper is None else float(source.upper.max())
