"""`fitact-fx report ...`: what a campaign's store holds, as text, JSON, a page, a table or figures."""

import argparse
import json
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError
from fitact_fx.reports.campaigns.figures import figures
from fitact_fx.reports.campaigns.page import write_page
from fitact_fx.reports.campaigns.text import text

ABOUT = """\
Prints what a store holds: of a campaign that is done, that runs now, or that was broken off.
"""
EXAMPLES = """\
examples:
  fitact-fx report run.db                               settings, a table, and the answer in sentences
  fitact-fx report run.db --html run.html               one page with everything, which needs no network
  fitact-fx report run.db --export run.csv              every draw, for tools of your own
"""

Printed = tuple[str, int]


def add_report(commands: Any, shape: dict[str, Any]) -> argparse.ArgumentParser:
    """`report`; `shape` is what every parser is made with."""
    report: argparse.ArgumentParser = commands.add_parser(
        "report", help="what a campaign found", description=ABOUT, epilog=EXAMPLES, **shape
    )
    add_store(report)
    report.add_argument("--html", metavar="FILE", help="also write the report as a page")
    report.add_argument("--export", metavar="FILE", help="also write all rows: .csv, .parquet, or everything as .json")
    report.add_argument("--figures", type=Path, metavar="DIR", help="also write each figure there, as SVG")
    report.add_argument("--json", action="store_true", help="print JSON in place of the text")
    report.set_defaults(report=_report)
    return report


def add_store(command: argparse.ArgumentParser) -> None:
    """The argument that names a store."""
    command.add_argument("made", type=Path, metavar="STORE", help="what `fitact-fx campaign` wrote")


def _report(options: argparse.Namespace) -> Printed:
    result = Store.read(options.made)
    if options.export is not None:
        result.export(options.export)
    if options.figures is not None:
        _draw(result, options.figures)
    written = [str(each) for each in (options.export, options.figures) if each is not None]
    return told(result, options.made, options, options.html, *written), 0


def told(result: CampaignResult, store: Path, options: argparse.Namespace, html: str | None, *written: str) -> str:
    """The text, or JSON, and what lies where; the page is written on the way."""
    if html is not None:
        write_page(result, html)
        written = (*written, html)
    if options.json:
        return json.dumps(result.as_json(), indent=2, allow_nan=False)
    parts = [text(result, min(120, max(100, shutil.get_terminal_size((110, 24)).columns))), _how_far(result, store)]
    return "\n\n".join([*filter(None, parts), *([f"Written: {', '.join(written)}."] if written else [])])


def _how_far(result: CampaignResult, store: Path) -> str:
    """Nothing for a campaign that is done."""
    done = Counter((row.variant, row.cell) for row in result.rows)
    planned = sum(
        done[variant, cell.name] if result.stopped(variant, cell.name) else cell.trials
        for cell in result.conditions
        for variant in result.variants
    )
    if len(result.rows) >= planned:
        return ""
    most = " at most" if result.settings["until"] is not None else ""
    far = f"Not finished: {len(result.rows):,} of {planned:,} draws{most}"
    return f"{far}. If nothing is running it: `fitact-fx resume {store}` goes on."


def _draw(result: CampaignResult, folder: Path) -> None:
    drawn = figures(result)
    folder.mkdir(parents=True, exist_ok=True)
    for one in drawn:
        (folder / f"{one.name}.svg").write_text(f"{one.svg}\n", "utf-8")


def refuse_unwritable(html: str | None) -> None:
    """Before the long work: CampaignError if the page could not be written behind it."""
    if html is None:
        return
    if not Path(html).parent.is_dir():
        raise CampaignError(f"there is no folder {Path(html).parent} for the report;\n  make it, or choose another")
    if find_spec("matplotlib") is None:
        raise CampaignError("the report has figures, which need matplotlib;\n  pip install 'fitact-fx[plot]'")
