"""What a campaign found as figures: accuracy against fault rate, and the single-fault summary."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.campaigns import maps
from fitact_fx.reports.campaigns.drawing import Picture, canvas, legend, literal, picture, style
from fitact_fx.reports.campaigns.estimates import Estimate
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import MEASURES, cell_name, estimate, measure_name, number, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(result: CampaignResult) -> tuple[Picture, ...]:
    """Every figure that this campaign has data for, as inline SVG. FitactError without matplotlib."""
    view = View(result)
    return (*overview(view), *maps.maps(view))


def overview(view: View) -> Iterator[Picture]:
    """What answers the campaign's question as a whole."""
    if any(one.rate for one in view.rates):
        yield _pictured("figure-rates", rate_figure, view, _rates_title(view), _rates_in_words(view))
    if view.strata:
        title = f"What {'a single fault' if view.one_by_one else 'one draw of faults'} does"
        yield _pictured("figure-single", single_figure, view, title, _single_in_words(view))


def rate_figure(view: View) -> "Figure":
    """The mean against the rate, its interval as a band, worst draws as faint markers, clean levels dashed.

    A rate of 0 has no place on a logarithmic axis and is left out.
    """
    measure, cells = view.main, [one for one in view.rates if one.rate]
    scale = 100 if measure in MEASURES else 1
    figure, axes = canvas(3.4 + 0.18 * len(view.variants))
    for number_, variant in enumerate(view.variants):
        _line(axes, view, variant, number_, cells, scale)
    axes.set_xscale("log")
    rates = [cell.rate for cell in cells if cell.rate]
    axes.set_xlim(min(rates) / 1.4, max(rates) * 1.4)  # also where no mean is a number
    if scale == 100:
        axes.set_ylim(-2, 102)
    axes.set_xlabel(f"bit error rate ({literal(', '.join(view.settings['targets']))})")
    axes.set_ylabel(literal(f"{measure_name(measure)} in %" if scale == 100 else measure))
    axes.grid(alpha=0.3)
    legend(figure, 1)
    return figure


def _line(axes: "Axes", view: View, variant: str, index: int, cells: list[Condition], scale: int) -> None:
    look, measure = style(index), view.main
    found = [(cell, one) for cell in cells if (one := view.estimate(variant, cell, measure)) is not None]
    rates = [cell.rate or 0.0 for cell, _ in found]
    means = [scale * one.mean for _, one in found]
    clean = view.clean(variant, measure)
    name = literal(variant, 40) + ("" if clean is None else f" (clean {number(clean, measure)}{unit_of(measure)})")
    axes.plot(
        rates,
        means,
        color=look.colour,
        linestyle=look.dashes,
        marker=look.marker,
        markersize=5,
        label=name,
    )
    # A single draw has no interval: there the band closes on the mean.
    low = [scale * (one.low if one.known else one.mean) for _, one in found]
    high = [scale * (one.high if one.known else one.mean) for _, one in found]
    axes.fill_between(rates, low, high, color=look.colour, alpha=0.18, linewidth=0)
    if clean is not None:
        axes.axhline(scale * clean, color=look.colour, linestyle=(0, (6, 4)), linewidth=0.8, alpha=0.8)
    if measure in MEASURES:
        worst = [scale * view.worst(variant, cell.name, measure) for cell, _ in found]
        axes.plot(rates, worst, look.marker, color=look.colour, markerfacecolor="none", alpha=0.45, markersize=4)


def single_figure(view: View) -> "Figure":
    """SDC-1, SDC-5 and DUE of one fault, one point with its interval per variant; hollow where none was seen."""
    measures = view.harms
    figure, axes = canvas(1.3 + 0.24 * len(measures) * len(view.variants) + 0.18 * len(view.variants))
    seen = 0.0
    for index, variant in enumerate(view.variants):
        look, offset = style(index), 0.7 * (index + 0.5) / len(view.variants) - 0.35
        for row, measure in enumerate(measures):
            found = view.pooled(variant, view.strata, measure)
            if found is None:
                continue
            seen = max(seen, 100 * (found.high if found.known and not found.never else found.mean))
            reach = [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]] if found.known else None
            axes.errorbar(
                [100 * found.mean],
                [row + offset],
                xerr=reach,
                color=look.colour,
                marker=look.marker,
                markerfacecolor="none" if found.never else look.colour,
                linestyle="none",
                capsize=3,
                label=literal(variant, 40) if row == 0 else None,
            )
    axes.set_yticks(range(len(measures)), [measure_name(one) for one in measures])
    axes.set_ylim(len(measures) - 0.5, -0.5)
    # What was never seen may reach farther than all that was: it runs out of the figure then.
    axes.set_xlim(0, 1.1 * seen if seen else None)
    axes.set_xlabel(f"share of samples per {'fault' if view.one_by_one else 'draw'} in %, mean and interval")
    axes.grid(axis="x", alpha=0.3)
    legend(figure, 2)
    return figure


def _pictured(name: str, draw: Callable[[View], "Figure"], view: View, title: str, about: str) -> Picture:
    return picture(draw(view), name, title, about)


def _rates_title(view: View) -> str:
    return f"{measure_name(view.main).capitalize() if view.main == 'accuracy' else view.main} against bit error rate"


def _rates_in_words(view: View) -> str:
    cells = [one for one in view.rates if one.rate]
    parts = []
    for variant in view.variants:
        ends = [f"{_of(view, variant, cell)} at {cell_name(cell)}" for cell in (cells[0], cells[-1])[: len(cells)]]
        clean = view.clean(variant, view.main)
        start = "" if clean is None else f"{number(clean, view.main)}{unit_of(view.main)} without faults, "
        parts.append(f"{variant}: {start}{', '.join(ends)}")
    worst = " Hollow markers are the worst draws, dashed levels the accuracy without faults."
    bands = f"Bands are {100 * view.confidence:g} % intervals of the mean over the draws."
    return f"{'. '.join(parts)}. {bands}{worst if view.main in MEASURES else ''}"


def _single_in_words(view: View) -> str:
    parts = []
    for variant in view.variants:
        of = [f"{measure_name(one)} {_words(view.pooled(variant, view.strata, one), one)}" for one in view.harms]
        parts.append(f"{variant}: {', '.join(of)}")
    return ". ".join(parts) + "."


def _of(view: View, variant: str, cell: Condition) -> str:
    return _words(view.estimate(variant, cell, view.main), view.main)


def _words(found: Estimate | None, measure: str) -> str:
    return estimate(found, measure, unit_of(measure))
