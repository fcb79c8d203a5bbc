"""The sections with what was found: per condition, variants beside each other on the same faults, and by part."""

from collections.abc import Callable, Mapping, Sequence

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition
from fitact_fx.reports.campaigns.drawing import Picture
from fitact_fx.reports.campaigns.estimates import Estimate
from fitact_fx.reports.campaigns.html import SHOWN, Markup, element, figure, joined, long_table, paragraph, table
from fitact_fx.reports.campaigns.summary import comparison as sentences
from fitact_fx.reports.campaigns.summary import pairs
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import (
    NOTHING,
    PER,
    cell_name,
    estimate,
    interval,
    measure_name,
    order_of_harm,
    percent,
    signed,
    verdict,
)
from fitact_fx.statistics import Interval

Pictures = Mapping[str, Picture]
Estimated = Callable[[str, Condition, str], Estimate | None]
_FOLDED = "Folded rows show means alone where intervals would take long."


def results(view: View, pictures: Pictures) -> Markup:
    """Every condition of every variant: accuracy, SDC and DUE apart."""
    measures = [*(("accuracy",) if view.labelled else ()), *view.harms, *view.metrics]
    headers = ["condition", "variant", "draws", *_headers(measures)]
    cells, lines = view.result.conditions, [(cell, name) for cell in view.result.conditions for name in view.variants]
    short = len(lines) <= SHOWN
    rows = [_line(view, *line, measures, view.estimate if short else view.glance) for line in lines]
    hurt = [] if short else [(cell, name) for cell in order_of_harm(view, cells) for name in view.variants][:SHOWN]
    worst = [_line(view, *line, measures, view.estimate) for line in hurt]
    said = (
        f"All shares in %, the mean over the draws with its {100 * view.confidence:g} % interval. SDC-1 and SDC-5 "
        "are of the samples that were right without faults: another answer, or one that was not among the first "
        "five, and nothing noticed. DUE is a sample with NaN or infinity in its output. “none (< x)”: no draw showed "
        "it, so that 3 / draws bounds it (rule of three)."
    )
    shown = [figure(pictures[name]) for name in ("figure-rates", "figure-single") if name in pictures]
    folded = paragraph("" if short else _FOLDED)
    return joined(*shown, paragraph(said), folded, long_table("Results", headers, rows, worst, words=2))


def _headers(measures: Sequence[str]) -> list[str]:
    found = []
    for measure in measures:
        found.append(measure_name(measure))
        found += ["worst draw"] if measure == "accuracy" else []
    return [*found, "draws with any DUE"]


def _line(view: View, cell: Condition, variant: str, measures: Sequence[str], estimated: Estimated) -> list[str]:
    trials = view.trials(variant, cell.name)
    early = " (stopped)" if view.stopped(variant, cell.name) else ""
    line = [cell_name(cell), variant, f"{trials:,}{early}"]
    for measure in measures:
        found = estimated(variant, cell, measure)
        line.append(estimate(found, measure))
        if measure == "accuracy":
            line.append(NOTHING if found is None else percent(view.worst(variant, cell.name, measure)))
    return [*line, interval(view.any_due(variant, cell.name), "due")]


def comparison(view: View) -> Markup:
    """Paired differences on the same faults, per condition and as an area."""
    if len(view.variants) < 2:
        return paragraph(
            "This campaign has one variant, so there is nothing to compare; give a protected one beside it."
        )
    measure = view.main if view.rates else view.harm
    few = len(view.result.conditions) <= SHOWN  # a bootstrap for each of very many would take long
    measures = [measure, *(one for one in ("sdc1", "due") if few and one in view.harms and one != measure)]
    cells = order_of_harm(view, view.result.conditions)
    parts = [paragraph(one) for one in sentences(view)]
    if len({name for pair in pairs(view.variants) for name in pair}) > 1:
        headers = [
            "condition",
            "variants",
            "pairs",
            *(f"{measure_name(one)}, difference" for one in measures),
            "verdict",
        ]
        every = {cell.name: _differences(view, cell, measures) for cell in view.result.conditions}
        rows = [row for lines in every.values() for row in lines]
        worst = [row for cell in cells[:SHOWN] for row in every[cell.name]][:SHOWN]
        parts.append(long_table("Differences on the same faults, in points", headers, rows, worst, words=2))
    return joined(_said(view), *parts, _areas(view))


def _said(view: View) -> Markup:
    return paragraph(
        "Each pair of variants had the same faults in the tensors that they share, so the difference is taken draw by "
        "draw, and its interval leaves out what the draws have in common. The verdict is about the first difference; "
        f"with {100 * view.confidence:g} % intervals some of many verdicts are wrong by chance."
    )


def _differences(view: View, cell: Condition, measures: Sequence[str]) -> list[list[str]]:
    lines = []
    for variant, other in pairs(view.variants):
        found = [view.difference(variant, other, cell.name, one) for one in measures]
        common = view.common(variant, other, cell.name, measures[0])
        shown = [signed(one, measure) for one, measure in zip(found, measures, strict=True)]
        lines.append([cell_name(cell), f"{variant} - {other}", f"{common:,}", *shown, verdict(found[0], measures[0])])
    return lines


def _areas(view: View) -> Markup:
    """The area under accuracy against the logarithm of the rate, as a mean accuracy over the decades."""
    if not view.labelled or len(view.rates) < 2 or not all(one.rate for one in view.rates) or not _everywhere(view):
        return Markup("")
    rows = [[variant, _area(view.result, variant), NOTHING] for variant in view.variants]
    for row in rows[1:]:
        row[2] = signed(view.result.area_difference(row[0], view.reference))
    said = (
        "The area under accuracy against log10 of the rate, over the draws that all rates have, divided by the width: "
        "the mean accuracy over the decades of the sweep."
    )
    headers = ("variant", "area", f"difference to {view.reference}")
    return joined(element("h3", "Over all rates"), paragraph(said), table("Area under the curve, in %", headers, rows))


def _everywhere(view: View) -> bool:
    """Whether some trial has an accuracy at every rate, in all variants."""
    have = [
        {row.trial for row in view.rows.get((name, cell.name), []) if row.accuracy is not None}
        for name in view.variants
        for cell in view.rates
    ]
    return bool(set.intersection(*have))


def _area(result: CampaignResult, variant: str) -> str:
    found: Interval | None = result.area(variant)
    return interval(found)


def breakdown(view: View, pictures: Pictures) -> Markup:
    """By site, tensor and bit, where the campaign can tell."""
    parts = (("site", view.sites, "figure-sites"), ("tensor", view.tensors, "figure-tensors"))
    made = [_part(view, pictures, name, cells, picture) for name, cells, picture in parts]
    made.append(_part(view, pictures, "bit", view.bits, "figure-bits"))
    maps = [figure(picture) for name, picture in pictures.items() if name.startswith("figure-pairs")]
    return joined(*made, element("h3", "By tensor and bit"), *(maps or [_untold("bits of each tensor", "pair")]))


def _untold(parts: str, key: str) -> Markup:
    return paragraph(f"This campaign did not tell {parts} apart; this one would: ", element("code", PER[key]))


def _part(view: View, pictures: Pictures, part: str, cells: Sequence[Condition], name: str) -> Markup:
    title = element("h3", f"By {part}")
    if not cells:
        return joined(title, _untold(f"{part}s", part))
    measures = view.harms
    headers = [part, *(["field"] if part == "bit" else []), "places", *_per_variant(view, measures)]
    few = len(cells) <= SHOWN
    rows = [_vulnerability(view, part, cell, measures, view.estimate if few else view.glance) for cell in cells]
    hurt = [] if few else order_of_harm(view, tuple(cells))[:SHOWN]
    worst = [_vulnerability(view, part, cell, measures, view.estimate) for cell in hurt]
    words = 2 if part == "bit" else 1
    listing = long_table(f"By {part}, in % of samples", headers, rows, worst, words)
    return joined(title, *([figure(pictures[name])] if name in pictures else []), listing)


def _per_variant(view: View, measures: Sequence[str]) -> list[str]:
    return [f"{measure_name(one)}, {variant}" for variant in view.variants for one in measures]


def _vulnerability(view: View, part: str, cell: Condition, measures: Sequence[str], estimated: Estimated) -> list[str]:
    named = [str(cell.bit), view.field(cell.bit or 0)] if part == "bit" else [cell_name(cell)]
    # What the maps show has its interval everywhere.
    shown = [
        estimate(view.estimate(variant, cell, one) if one == view.harm else estimated(variant, cell, one), one)
        for variant in view.variants
        for one in measures
    ]
    return [*named, f"{cell.population:,}", *shown]
