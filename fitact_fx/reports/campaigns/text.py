"""What `fitact-fx campaign` prints when it is done."""

from textwrap import fill

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.reports.campaigns.summary import answer, comparison, stop_rule
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import count, listed, span

_LINES = 60  # of a table that people read in a terminal


def text(result: CampaignResult, width: int = 110) -> str:
    """Settings in two lines, the table, the answer in sentences; for a terminal `width` characters wide."""
    view = View(result)
    blocks = [fill(line, width, subsequent_indent="  ") for line in _settings(view)]
    parts = ["\n".join(blocks)]
    if result.rows:
        parts.append(_table(result))
    said = dict.fromkeys([*answer(view), *(comparison(view) if len(view.variants) > 2 else ())])
    parts.append("\n".join(fill(one, width, subsequent_indent="  ") for one in said))
    parts.append(fill(stop_rule(view), width, subsequent_indent="  "))
    failed = sum(row.error is not None for row in result.rows)
    if failed:
        parts.append(
            fill(
                f"In {count(failed, 'trial')} something raised or gave no number: the report lists them.",
                width,
            )
        )
    return "\n\n".join(parts)


def _table(result: CampaignResult) -> str:
    lines = result.table().splitlines()
    left = len(lines) - _LINES
    return "\n".join(
        lines if left <= 0 else [*lines[:_LINES], f"... and {left:,} more lines: the report has all of them"]
    )


def _settings(view: View) -> list[str]:
    """What was asked, and of what."""
    settings = view.settings
    draws = span([len(rows) for rows in view.rows.values()])
    until = "" if settings.get("until") is None else f", until ±{100 * settings['until']:g} points"
    drawn = f"{draws} draws of {settings['trials']:,} per condition{until}"
    hit = f"{settings['format']} {listed(list(settings['targets']))}; seed {settings['seed']}, {drawn}"
    variants = f"{count(len(view.variants), 'variant')} ({', '.join(view.variants)})"
    conditions = f"{count(len(view.result.conditions), 'condition')}, {count(settings['samples'], 'sample')}"
    return [f"{settings['kind']}: {settings['fault']}; {hit}", f"{variants}, {conditions}"]
