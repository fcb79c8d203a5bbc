"""Where a fault hurts: maps of vulnerability per tensor, site and bit, and of tensor by bit."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.campaigns.drawing import Picture, canvas, legend, literal, picture, style, thinned
from fitact_fx.reports.campaigns.estimates import Estimate
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import cell_name, estimate, measure_name, order_of_harm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS = 40  # names of more cannot be read beside each other: then a line in network order
_NAMED = 8  # so many of the worst are named in it
_SHADES = ("#ECECEC", "#FFFFFF", "#DDE6EE")


def maps(view: View) -> Iterator[Picture]:
    """Every map that the campaign has cells for."""
    harm = measure_name(view.harm)
    for cells, part in ((view.sites, "site"), (view.tensors, "tensor")):
        if cells:
            draw = bars if len(cells) <= _MOST_BARS else profile
            title = f"{harm} per {part}, in network order"
            yield picture(draw(view, cells), f"figure-{part}s", title, _worst(view, cells))
    if view.bits:
        yield picture(bit_bars(view), "figure-bits", f"{harm} per bit of a word", _worst(view, view.bits))
    if view.pairs:
        for number, variant in enumerate(view.variants):
            title = f"{harm} per tensor and bit: {variant}"
            yield picture(heat(view, variant), f"figure-pairs-{number}", title, _worst(view, view.pairs, variant))


def bars(view: View, cells: Sequence[Condition]) -> "Figure":
    """One horizontal bar per cell and variant with its interval, the first cell at the top."""
    many = len(view.variants)
    figure, axes = canvas(1.0 + len(cells) * max(0.2, 0.11 * many + 0.06) + 0.18 * many)
    for index, variant in enumerate(view.variants):
        places = np.arange(len(cells)) + 0.8 * (index + 0.5) / many - 0.4
        _bars(axes, view, variant, cells, places, 0.8 / many, flat=True)
    names = [literal(cell_name(one), 28) for one in cells]
    axes.set_yticks(range(len(cells)), names, fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{measure_name(view.harm)} in % of samples per fault")
    axes.grid(axis="x", alpha=0.3)
    legend(figure, 2)
    return figure


def profile(view: View, cells: Sequence[Condition]) -> "Figure":
    """A line through many cells in network order, with its interval as a band; the worst carry a number and a name."""
    worst = [cell for cell in order_of_harm(view, tuple(cells))[:_NAMED] if _peak(view, cell) > 0]
    figure, axes = canvas(3.2 + 0.18 * (len(view.variants) + len(worst)))
    x = np.arange(1, len(cells) + 1)
    for index, variant in enumerate(view.variants):
        look = style(index)
        mean, low, high = _curves(view, variant, cells)
        axes.plot(x, mean, color=look.colour, linestyle=look.dashes, linewidth=1.1, label=literal(variant, 40))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    _shade_blocks(axes, cells)
    for rank, cell in enumerate(worst, 1):
        at, height = cells.index(cell) + 1, 100 * _peak(view, cell)
        axes.annotate(str(rank), (at, height), (0, 4), textcoords="offset points", ha="center", fontsize=8)
        name = f"{rank}: {literal(cell_name(cell), 34)} ({100 * _peak(view, cell):.1f} %)"
        axes.plot([], [], linestyle="none", label=name)
    axes.set_xlim(0.5, len(cells) + 0.5)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_xlabel(
        f"{len(cells)} tensors in network order" if cells[0].site is None else f"{len(cells)} sites in order"
    )
    axes.set_ylabel(f"{measure_name(view.harm)} in %\nof samples per fault")
    legend(figure, 1)
    return figure


def bit_bars(view: View) -> "Figure":
    """Bars per bit, the most significant on the left as a word is written, the parts of the word shaded."""
    cells = sorted(view.bits, key=lambda one: -(one.bit or 0))
    many = len(view.variants)
    figure, axes = canvas(3.0 + 0.18 * many)
    for index, variant in enumerate(view.variants):
        places = np.arange(len(cells)) + 0.8 * (index + 0.5) / many - 0.4
        _bars(axes, view, variant, cells, places, 0.8 / many, flat=False)
    _shade_fields(axes, view, [one.bit or 0 for one in cells])
    ticks = thinned([str(one.bit) for one in cells], 16)
    axes.set_xticks(ticks, [str(cells[tick].bit) for tick in ticks], fontsize=8)
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"bit of a {literal(view.settings['format'])} word, 0 the least significant")
    axes.set_ylabel(f"{measure_name(view.harm)} in %\nof samples per fault")
    legend(figure, 2)
    return figure


def heat(view: View, variant: str) -> "Figure":
    """Tensors down, bits across, brighter is worse; hatched where nothing was measured."""
    rows = list(dict.fromkeys(one.site or one.tensor or "" for one in view.pairs))
    columns = sorted({one.bit or 0 for one in view.pairs}, reverse=True)
    values = np.full((len(rows), len(columns)), np.nan)
    for cell in view.pairs:
        found = view.estimate(variant, cell, view.harm)
        if found is not None:
            values[rows.index(cell.site or cell.tensor or ""), columns.index(cell.bit or 0)] = 100 * found.mean
    figure, axes = canvas(min(8.0, 1.5 + max(1.0, 0.16 * len(rows))))
    axes.set_facecolor("#CCCCCC")
    axes.patch.set_hatch("xxx")
    # One scale for all variants, so that their maps can be compared.
    top = max((100 * _peak(view, cell) for cell in view.pairs), default=0.0) or 1.0
    shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    down, across = thinned(rows, 40), thinned([str(bit) for bit in columns], 16)
    axes.set_yticks(down, [literal(rows[tick], 28) for tick in down], fontsize=7)
    axes.set_xticks(across, [str(columns[tick]) for tick in across], fontsize=8)
    axes.set_xlabel(f"bit of a {literal(view.settings['format'])} word")
    figure.colorbar(shown, ax=axes, label=f"{measure_name(view.harm)} in %", location="bottom", fraction=0.06)
    return figure


def _bars(
    axes: "Axes", view: View, variant: str, cells: Sequence[Condition], places: object, thick: float, *, flat: bool
) -> None:
    look = style(view.variants.index(variant))
    mean, low, high = _curves(view, variant, cells)
    reach = [np.nan_to_num(mean - low), np.nan_to_num(high - mean)]
    fill = {"facecolor": "white" if look.hatch else look.colour, "edgecolor": look.colour, "hatch": look.hatch}
    whiskers = {"ecolor": "#777777" if not look.hatch else look.colour, "capsize": 1.5, "elinewidth": 0.8}
    draw = axes.barh if flat else axes.bar
    along = "xerr" if flat else "yerr"
    options = {**fill, along: reach, "linewidth": 0.7, "label": literal(variant, 40), "error_kw": whiskers}
    draw(places, np.nan_to_num(mean), thick, **options)  # type: ignore[arg-type]


def _curves(view: View, variant: str, cells: Sequence[Condition]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high in per cent, (cells,) each; NaN where nothing was measured, the mean where no interval is.

    Nor is there one where no draw did harm: what the rule of three leaves possible would hide everything else.
    """
    found = [view.estimate(variant, cell, view.harm) for cell in cells]
    rows = [
        (np.nan, np.nan, np.nan)
        if one is None
        else (one.mean, one.low if _has_ends(one) else one.mean, one.high if _has_ends(one) else one.mean)
        for one in found
    ]
    mean, low, high = 100 * np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return mean, low, high


def _has_ends(found: Estimate) -> bool:
    return found.known and not found.never


def _peak(view: View, cell: Condition) -> float:
    """Of the variant that suffers most from this cell."""
    return max((one.mean for name in view.variants if (one := view.estimate(name, cell, view.harm))), default=0.0)


def _shade_blocks(axes: "Axes", cells: Sequence[Condition]) -> None:
    """Each top-level block of the network on its own ground, named above where there is room."""
    tops = [(cell.site or cell.tensor or "").partition(".")[0] for cell in cells]
    start, shade = 0, 0
    for end in range(1, len(tops) + 1):
        if end < len(tops) and tops[end] == tops[start]:
            continue
        axes.axvspan(start + 0.5, end + 0.5, color=_SHADES[shade % 2], zorder=0, linewidth=0)
        if end - start >= len(tops) / 12:
            middle = (start + end + 1) / 2
            axes.text(
                middle, 1.01, literal(tops[start], 12), transform=axes.get_xaxis_transform(), ha="center", fontsize=7
            )
        start, shade = end, shade + 1


def _shade_fields(axes: "Axes", view: View, bits: Sequence[int]) -> None:
    for shade, (name, field) in enumerate(view.fields.items()):
        inside = [place for place, bit in enumerate(bits) if bit in field]
        if not inside:
            continue
        axes.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=_SHADES[shade % 3], zorder=0, linewidth=0)
        middle = (inside[0] + inside[-1]) / 2
        axes.text(middle, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)


def _worst(view: View, cells: Sequence[Condition], *variants: str) -> str:
    """The three worst cells of each variant in words."""
    parts = []
    for variant in variants or view.variants:
        found = [(cell, one) for cell in cells if (one := view.estimate(variant, cell, view.harm)) is not None]
        found.sort(key=lambda pair: -pair[1].mean)
        worst = [f"{cell_name(cell)} {estimate(one, view.harm, ' %')}" for cell, one in found[:3] if one.mean > 0]
        parts.append(f"{variant}: worst are {', '.join(worst)}" if worst else f"{variant}: no harm was seen")
    shown = [view.estimate(variant, cell, view.harm) for variant in variants or view.variants for cell in cells]
    free = "" if not any(one is not None and one.never for one in shown) else " No bar: no draw showed any harm."
    return ". ".join(parts) + "." + free
