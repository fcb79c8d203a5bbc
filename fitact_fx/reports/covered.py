"""What `fitact-fx coverage` prints."""

import re
from textwrap import fill

from tabulate import tabulate

from fitact_fx.call_table import alike
from fitact_fx.coverage import Coverage
from fitact_fx.reports.words import clipped

_PLACE = re.compile(r"\S+:\d+(?=:|$)")


def text(found: Coverage, spec: str, width: int = 110, *, every: bool = False) -> str:
    """The whole report, for a terminal `width` characters wide; `every`: all calls one by one, and not the open ones.

    Names and the numbers of lines are never cut.
    """
    parts = [_summary(found, spec)]
    if every:
        parts.append(_fitted(_calls(found), width))
    elif found.open:
        about = f"Open calls ({len(found.open)}): a fault that arises in one of these can come to the output unbounded."
        parts += [about, _fitted(found.table(), width)]
    if found.unseen:
        lines = [_item(path or "the model itself", why.splitlines()[0], width) for path, why in found.unseen.items()]
        parts.append("\n".join([f"Code that could not be seen ({len(lines)}):", *lines]))
    return "\n\n".join([*parts, _check(found, width)])


def _summary(found: Coverage, spec: str) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
    line = f"{spec}: front end {found.frontend}, {len(found.calls)} calls: {counts}"
    return line if not found.complete else f"{line}\nNo fault in any of them comes to the output but through a bound."


def _calls(found: Coverage) -> str:
    rows = [(call.name, call.operator, call.status, call.why) for call in found.calls]
    return tabulate(rows, ("call", "operator", "status", "why"), tablefmt="simple", disable_numparse=True)


def _check(found: Coverage, width: int) -> str:
    """What torch.export says to it."""
    if found.missing is None:
        return fill(f"Not compared with what torch.export sees: {found.unchecked}", width, subsequent_indent="  ")
    if not found.missing:
        return "torch.export sees no other activation in this model."
    title = f"Activations that torch.export sees and that are no sites here ({len(found.missing)}):"
    return "\n".join([title, *(f"  {name}" for name in alike(found.missing))])


def _item(where: str, why: str, width: int) -> str:
    return fill(f"{where}: {why}", width, initial_indent="  ", subsequent_indent="      ")


def _fitted(table: str, width: int) -> str:
    """Reasons in as many lines as they need, calls in one."""
    return "\n".join(_row(line, width) if line.startswith(" ") else _reason(line, width) for line in table.splitlines())


def _reason(line: str, width: int) -> str:
    return fill(line, width, subsequent_indent="    ") if len(line) > width else line


def _row(line: str, width: int) -> str:
    """The source is cut, but not before its number."""
    place = _PLACE.search(line)
    return clipped(line, max(width, place.end() + 1 if place else 0))
