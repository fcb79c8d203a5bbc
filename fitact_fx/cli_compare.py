"""`fitact-fx compare`: the variants of one campaign against one of them, or several campaigns side by side."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError, close_to
from fitact_fx.reports.campaigns.compared import compared, compared_json
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import MEASURES, NOTHING, cell_name, measure_name, signed, span
from fitact_fx.statistics import Interval

ABOUT = """\
Of one campaign: how much better or worse each variant does than the reference, over the trials that both
have, on the same faults. That is more certain than two means beside each other, since what a draw happens
to hit is the same for both. Of several campaigns: all their variants side by side, as pairs where their
draws are the same, with the reason where they are not. Campaigns that still run can be compared.
"""
EXAMPLES = """\
examples:
  fitact-fx compare run.db                              against the first variant
  fitact-fx compare run.db --reference fitact --measure due
  fitact-fx compare q15.db float32.db                   does the format matter?
"""


def add_compare(commands: Any, shape: dict[str, Any]) -> argparse.ArgumentParser:
    """`compare`; `shape` is what every parser is made with."""
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare", help="variants or campaigns beside each other", description=ABOUT, epilog=EXAMPLES, **shape
    )
    compare.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="what `fitact-fx campaign` wrote")
    compare.add_argument("--reference", metavar="NAME", help="the variant to compare with (default: the first)")
    compare.add_argument("--measure", metavar="NAME", help="accuracy, sdc1, sdc5, due (default: the campaign's own)")
    compare.add_argument("--json", action="store_true", help="print JSON in place of the text")
    compare.set_defaults(report=_report)
    return compare


def _report(options: argparse.Namespace) -> tuple[str, int]:
    results = {str(path): Store.read(path) for path in options.stores}
    if len(results) < len(options.stores):
        raise CampaignError("a store is given twice;\n  name each once")
    (first, result), *_ = results.items()
    if options.reference is not None:
        if options.reference not in result.variants:
            there = f"the variants of {first} are {', '.join(result.variants)}"
            close = close_to(options.reference, result.variants)
            raise CampaignError(f"there is no variant {options.reference!r}{close};\n  {there}")
        results = {name: _with_first(each, options.reference) for name, each in results.items()}
    if len(results) > 1:
        return _several(results, options), 0
    return _one(first, results[first], options), 0


def _with_first(result: CampaignResult, reference: str) -> CampaignResult:
    """With that variant in front, if it has it."""
    variants = result.settings["variants"]
    order = [name for name in (reference,) if name in variants]
    order += [name for name in variants if name != reference]
    return replace(result, settings={**result.settings, "variants": {name: variants[name] for name in order}})


def _several(results: Mapping[str, CampaignResult], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(compared_json(results, options.measure), indent=2, allow_nan=False)
    return compared(results, options.measure)


def _one(store: str, result: CampaignResult, options: argparse.Namespace) -> str:
    if len(result.variants) < 2:
        raise CampaignError(f"{store} has one variant, {result.variants[0]};\n  give another store to compare it with")
    measure = options.measure or result.measure
    result.values(result.variants[0], result.conditions[0].name, measure)  # an unknown measure shows here
    if options.json:
        return json.dumps(_document(store, View(result), measure), indent=2, allow_nan=False)
    return _text(store, View(result), measure)


def _document(store: str, view: View, measure: str) -> dict[str, Any]:
    differences = [
        {
            "condition": cell.name,
            "variant": variant,
            "pairs": view.common(variant, view.reference, cell.name, measure),
            "mean": found.mean if isfinite(found.mean) else None,
            "interval": [found.low, found.high] if isfinite(found.low) else None,
        }
        for cell in view.result.conditions
        for variant in view.variants[1:]
        if (found := view.difference(variant, view.reference, cell.name, measure)) is not None
    ]
    clean = {variant: _clean(view, variant, measure) for variant in view.variants[1:]}
    return {
        "store": store,
        "measure": measure,
        "reference": view.reference,
        "clean": clean,
        "differences": differences,
    }


def _text(store: str, view: View, measure: str) -> str:
    others = view.variants[1:]
    rows = [["no faults", *(_exactly(_clean(view, name, measure), measure) for name in others), ""]]
    rows += [_row(view, cell, measure) for cell in view.result.conditions]
    unit = ", in points" if measure in MEASURES else ""
    title = f"{store}: {measure_name(measure)} of each variant less that of {view.reference}, on the same faults{unit}"
    sure = f"(mean and {100 * view.confidence:g} % interval over the draws that both have)"
    align = ["left", *("right" for _ in rows[0][1:])]
    table = tabulate(rows, ["condition", *others, "draws"], tablefmt="simple", disable_numparse=True, colalign=align)
    return f"{title}\n{sure}\n\n{table}"


def _row(view: View, cell: Condition, measure: str) -> list[str]:
    others = view.variants[1:]
    shown = [signed(view.difference(name, view.reference, cell.name, measure), measure) for name in others]
    return [cell_name(cell), *shown, span([view.common(name, view.reference, cell.name, measure) for name in others])]


def _exactly(value: float | None, measure: str) -> str:
    return NOTHING if value is None else signed(Interval(value, -inf, inf), measure)


def _clean(view: View, variant: str, measure: str) -> float | None:
    here, there = view.clean(variant, measure), view.clean(view.reference, measure)
    return None if here is None or there is None else here - there
