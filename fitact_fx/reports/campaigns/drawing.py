"""Figures of campaigns: a canvas without global state, line styles that survive grey print, and inline SVG."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from fitact_fx.errors import FitactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches: as wide as a phone at matplotlib's own text size, so that text is not scaled away
# Okabe and Ito's, which readers with any colour vision tell apart; black is the reference.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[object, ...] = ("-", (0, (5, 1.5)), (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2, 2, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++")
_ID = re.compile(r'(?<= id=")[^"]+|(?<=url\(#)[^)]+|(?<=xlink:href="#)[^"]+')


@dataclass(frozen=True)
class Style:
    """How one variant looks in every figure: never by colour alone."""

    colour: str
    dashes: object
    marker: str
    hatch: str


@dataclass(frozen=True)
class Picture:
    """A figure as inline SVG. `name` is its id, `description` says in words what there is to see."""

    name: str
    title: str
    description: str
    svg: str


def style(number: int) -> Style:
    """Of variant `number`; after 35 they come again."""
    dashes = _DASHES[number % len(_DASHES)]
    return Style(
        _COLOURS[number % len(_COLOURS)],
        dashes,
        _MARKERS[number % len(_MARKERS)],
        _HATCHES[number % len(_HATCHES)],
    )


def canvas(height: float, width: float = WIDTH) -> tuple["Figure", "Axes"]:
    """A figure of that many inches that belongs to nobody else, and its axes. FitactError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        problem = "the figures of a report need matplotlib, which is not installed"
        raise FitactError(f'{problem};\n  pip install "fitact-fx[plot]"') from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure: "Figure", columns: int) -> None:
    """One legend for the whole figure, below it."""
    figure.legend(loc="outside lower center", ncols=max(1, min(2, columns)), frameon=False, handlelength=3.2)


def literal(text: str, width: int = 60) -> str:
    """A name as it is: matplotlib would read what stands between dollar signs as a formula."""
    short = text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"
    drawable = "".join(sign if sign.isprintable() and _has_glyph(sign) else "□" for sign in short)
    return drawable.replace("$", r"\$")


def picture(figure: "Figure", name: str, title: str, description: str) -> Picture:
    """The figure as SVG that can stand inside a page beside others."""
    import matplotlib as mpl

    file = StringIO()
    # The ids of clip paths are drawn at random otherwise, and the same campaign must give the same page.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Picture(name, title, description, _inline(file.getvalue(), name, title, description))


def _inline(document: str, name: str, title: str, description: str) -> str:
    """Without prologue and metadata, with ids of its own, named for those who cannot see it."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _ID.sub(lambda found: f"{name}-{found[0]}", svg)
    svg = svg.replace("*{", f"#{name}-svg *{{")  # its style sheet would hold for the whole page
    label, about = escape(title), escape(description)
    start = f'<svg id="{name}-svg" role="img" aria-label="{label}" '
    inside = f"<title>{label}</title><desc>{about}</desc>"
    return re.sub(r"<svg ([^>]*)>", lambda found: f"{start}{found[1]}>{inside}", svg, count=1).strip()


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _has_glyph(sign: str) -> bool:
    """Whether the font that comes with matplotlib has it: others are drawn as boxes, with a warning for each."""
    return ord(sign) in _glyphs()


def thinned(names: Sequence[str], at_most: int) -> list[int]:
    """Indices of at most so many names, evenly spaced, the first included."""
    step = -(-len(names) // at_most) if names else 1
    return list(range(0, len(names), step))
