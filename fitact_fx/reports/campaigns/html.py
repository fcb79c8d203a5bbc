"""Pieces of a page. Text is escaped by construction: only what was made here counts as markup."""

from collections.abc import Sequence
from html import escape

from fitact_fx.reports.campaigns.drawing import Picture

SHOWN = 20  # rows of a long table that are not folded away

Rows = Sequence[Sequence[str]]


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str) -> Markup:
    """<tag>content</tag>. What is not Markup is escaped, attributes always; `class_` stands for class."""
    named = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    inside = "".join(part if isinstance(part, Markup) else escape(part) for part in content)
    return Markup(f"<{tag}{named}>{inside}</{tag}>")


def joined(*parts: str) -> Markup:
    """One after the other."""
    return Markup("\n".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def paragraph(*content: str) -> Markup:
    """One paragraph; nothing for no text."""
    return element("p", *content) if any(content) else Markup("")


def bullets(items: Sequence[str]) -> Markup:
    """A list."""
    return element("ul", *(element("li", item) for item in items))


def code(*lines: str) -> Markup:
    """Lines to be typed."""
    return element("pre", element("code", "\n".join(lines)))


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Names and what they are, as a list of definitions."""
    return element("dl", *(element("div", element("dt", name), element("dd", text)) for name, text in pairs))


def table(caption: str, headers: Sequence[str], rows: Rows, words: int = 1) -> Markup:
    """A table that scrolls within itself. The first `words` columns hold words, the others numbers."""
    side = ["words" if number < words else "number" for number in range(len(headers))]
    head = element("tr", *(element("th", name, scope="col", class_=side[at]) for at, name in enumerate(headers)))
    body = [element("tr", *(element("td", text, class_=side[at]) for at, text in enumerate(row))) for row in rows]
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def long_table(caption: str, headers: Sequence[str], rows: Rows, worst: Rows, words: int = 1) -> Markup:
    """The table; where it is long only `worst` rows, and all `rows` folded away."""
    if len(rows) <= SHOWN:
        return table(caption, headers, rows, words)
    short = table(f"{caption}: the {len(worst)} worst of {len(rows)}", headers, worst, words)
    return joined(short, folded(f"All {len(rows):,} rows", table(caption, headers, rows, words)))


def folded(summary: str, *content: str) -> Markup:
    """Something that opens on demand."""
    return element("details", element("summary", summary), *content)


def figure(picture: Picture) -> Markup:
    """A figure with its caption; the long description is also for those who see."""
    caption = element("figcaption", element("strong", picture.title), " ", picture.description)
    return element("figure", Markup(picture.svg), caption, id=picture.name)


def section(name: str, title: str, *content: str) -> Markup:
    """A part of the page under its heading."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")
