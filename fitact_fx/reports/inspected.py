"""What `fitact-fx inspect` prints."""

import re
from textwrap import fill

from tabulate import tabulate

from fitact_fx.granularity import NAMES
from fitact_fx.hidden import Limit
from fitact_fx.inspection import InspectedSite, Inspection
from fitact_fx.reports.words import clipped, share, size

_HEADERS = ["site", "kind", "shape", *NAMES, "bytes", "source"]
_ALIGN = ("left", "left", "right", *("right" for _ in NAMES), "right", "left")
_SHORTEST_SOURCE = 16
_PLACE = re.compile(r"^.+?:\d+(?=: |$)")
_GAP, _HEADER_PADDING = 2, 2  # tabulate's own


def text(found: Inspection, spec: str, width: int = 110) -> str:
    """The whole report, for a terminal `width` characters wide; long names are never cut."""
    title = f"{spec}: {found.parameters:,} parameters, {size(found.parameter_bytes)}"
    parts = [f"{title}; {_kinds(found)}"]
    if found.frontend not in (None, "symbolic"):
        parts.append(
            f"The graph was made by the front end {found.frontend!r}; `fitact-fx coverage` tells what it holds."
        )
    if found.obstacle is not None:
        parts.append("This model cannot be hardened:\n  " + found.obstacle)
    if found.sites:
        parts.append(_table(found, width))
        parts.append(_notes(found, width))
    if found.limits:
        lines = [_limit(limit, width) for limit in found.limits]
        parts.append("\n".join([f"Not protected, or not at every granularity ({len(lines)}):", *lines]))
    elif found.obstacle is None:
        parts.append("Every activation that was found can be protected, at every granularity.")
    return "\n\n".join(parts)


def _kinds(found: Inspection) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    return f"{len(found.sites)} sites" + (f": {kinds}" if kinds else "")


def _table(found: Inspection, width: int) -> str:
    rows = [_row(site) for site in found.sites]
    total = ["total", "", "", *map(_number, found.bounds.values()), _size(found.bytes["neuron"]), ""]
    memory = ["memory", "", "", *map(_size, found.bytes.values()), "", ""]
    relative = ["of parameters", "", "", *(_of(each, found.parameter_bytes) for each in found.bytes.values())]
    rows += [[""] * len(_HEADERS), total, memory, [*relative, "", ""]]
    before = range(len(_HEADERS) - 1)
    cells = [max(len(row[column]) for row in rows) for column in before]
    taken = sum(_GAP + max(cells[column], len(_HEADERS[column]) + _HEADER_PADDING) for column in before)
    for row in rows:
        row[-1] = _source(row[-1], max(_SHORTEST_SOURCE, width - taken))
    return tabulate(rows, _HEADERS, tablefmt="simple", disable_numparse=True, colalign=_ALIGN)


def _row(site: InspectedSite) -> list[str]:
    shape = "?" if site.shape is None else "x".join(map(str, site.shape)) or "()"
    counts = [_number(site.bounds[name]) for name in NAMES]
    line = re.sub(r", in [^:]+: ", ": ", site.source)  # the code says more than the function's name
    return [site.name, site.kind, shape, *counts, _size(site.bytes["neuron"]), line]


def _source(line: str, width: int) -> str:
    """`model.py:41: x = self.relu(x)` in `width` characters; the line's number stays when the rest must go."""
    place = _PLACE.match(line)
    if place and len(place[0]) > width:
        return "…" + place[0][1 - width :]
    return clipped(line, width) if not place or len(place[0]) < width else place[0]


def _notes(found: Inspection, width: int) -> str:
    notes = (
        "neuron, channel, layer: how many numbers the bounds of a site are at that granularity (kinds that go below "
        "zero have a lower and an upper one); bytes: at neuron granularity. Shapes leave the batch out."
    )
    if any(site.shape is None for site in found.sites):
        notes += " They, and with them neuron bounds, are known once you give an input: --input 1,3,224,224"
    return fill(notes, width)


def _limit(limit: Limit, width: int) -> str:
    return fill(f"{limit.where}: {limit.why}", width, initial_indent="  ", subsequent_indent="      ")


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _size(count: int | None) -> str:
    return "?" if count is None else size(count)


def _of(count: int | None, whole: int) -> str:
    return "?" if count is None or not whole else f"{share(count / whole)} %"
