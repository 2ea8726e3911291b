"""A page from its parts: sections of cards, figures, tables, pictures and words become one HTML text.

The text needs no other file and no network: style, scripts, data and the plotting library are inside, and its Content
Security Policy lets nothing else in. Every string given here is plain text; escaping happens here and in the template.
Colours are CSS variables of ``style.css`` ("var(--private)"), so that plots follow the page from light to dark.

Needs plotly (its JavaScript library; figures are its JSON) and Jinja2, the extra ``report``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar

NORM_SIGNS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


@dataclass(frozen=True)
class Card:
    """One key figure. ``tone``: "", "good", "bad"; ``code`` is something to copy, such as a hash."""

    label: str
    value: str
    note: str = ""
    tone: str = ""
    code: str = ""


@dataclass(frozen=True)
class Words:
    """Paragraphs."""

    kind: ClassVar[str] = "words"
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what they are, in two columns; ``code`` sets the names as commands."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]
    code: bool = False


@dataclass(frozen=True)
class Steps:
    """What happened, one after the other."""

    kind: ClassVar[str] = "steps"
    items: Sequence[Card]


@dataclass(frozen=True)
class Figure:
    """A plot: traces and layout as plotly's JSON.

    name: unique on the page, part of the names of downloaded files.
    summary: what the plot shows, for who cannot see it; the numbers are below it as a table as well.
    """

    name: str
    title: str
    summary: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    height: int = 300

    @property
    def legend(self) -> list[dict[str, Any]]:
        """Name, colour and look of each trace, if there is more than one."""
        if len(self.traces) < 2:
            return []
        return [
            {"name": trace["name"], "colour": _colour(trace), "dashed": "dash" in trace.get("line", {})}
            for trace in self.traces
        ]

    @property
    def numbers(self) -> tuple[list[str], list[list[Any]]]:
        """The plotted values as heads and rows, one row for each place on the axis that the traces share."""
        across, along = ("y", "x") if self.traces[0].get("orientation") == "h" else ("x", "y")
        places = list(dict.fromkeys(place for trace in self.traces for place in trace[across]))
        found = [dict(zip(trace[across], trace[along], strict=True)) for trace in self.traces]
        title = self.layout.get(f"{across}axis", {}).get("title", {}).get("text", "")
        heads = [title, *(trace["name"] for trace in self.traces)]
        return heads, [[place, *(values.get(place) for values in found)] for place in places]


@dataclass(frozen=True)
class Figures:
    """Plots side by side where there is room. ``small``: as many in a row as fit."""

    kind: ClassVar[str] = "figures"
    items: Sequence[Figure]
    small: bool = False


@dataclass(frozen=True)
class Column:
    """One column of a table. ``key`` finds the value in a row; ``digits`` formats numbers; ``choose`` adds a filter."""

    key: str
    title: str
    digits: int | None = None
    choose: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell as shown."""
        value = row.get(self.key)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "–"  # noqa: RUF001  (an en dash is how a table says "nothing")
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value) if self.digits is None else f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """Rows that the reader can sort by any column and filter."""

    kind: ClassVar[str] = "table"
    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]

    def choices(self, column: Column) -> list[str]:
        """The different values of a column, in the order of the rows."""
        return list(dict.fromkeys(column.text(row) for row in self.rows))


@dataclass(frozen=True)
class Picture:
    """Pixels from -1 to 1, rows first: above 0 ink, below 0 the opposite colour (of a difference)."""

    caption: str
    alt: str
    pixels: Sequence[Sequence[float]]
    signed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return max(map(len, self.pixels), default=0), len(self.pixels)

    @property
    def dots(self) -> list[tuple[int, int, float, bool]]:
        """Place, strength and sign of every pixel that is not blank."""
        return [
            (x, y, min(1.0, round(abs(value), 3)), value < 0)
            for y, row in enumerate(self.pixels)
            for x, value in enumerate(row)
            if math.isfinite(value) and round(abs(value), 3) > 0
        ]


@dataclass(frozen=True)
class Exhibit:
    """Pictures that belong together, and what is said of them: (who, what, whether that is right)."""

    title: str
    pictures: Sequence[Picture]
    said: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class Exhibits:
    """A wall of exhibits."""

    kind: ClassVar[str] = "exhibits"
    items: Sequence[Exhibit]


Block = Words | Facts | Steps | Figures | Table | Exhibits


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; ``name`` is its address (#name), ``short`` its name in the navigation."""

    name: str
    short: str
    title: str
    intro: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The whole page. ``data`` is what "Download data" gives, under the name ``data_name``."""

    title: str
    heading: str
    lead: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    data: Mapping[str, Any]
    data_name: str
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML. ModuleNotFoundError if plotly or Jinja2 is missing."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    scripts = [_script(get_plotlyjs()), _script(_file("page.js"))]
    figures = {
        figure.name: {
            "title": html.escape(figure.title),
            "data": [_for_plotly(trace) for trace in figure.traces],
            "layout": figure.layout,
            "height": figure.height,
        }
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Figures)
        for figure in block.items
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_file("page.html")).render(
        page=page,
        style=Markup(_file("style.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_csp_hash(script) for script in scripts],
        data=_finite({"figures": figures, "download": page.data, "name": page.data_name}),
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """A script that may stand inside a page: the browser turns line ends into "\\n" before it takes the hash."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("the script would end its element early: it holds </script or <!--")
    return text


def _csp_hash(script: str) -> str:
    """What a Content Security Policy calls this script (W3C CSP Level 3, hash-source)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot say (NaN, infinity): a gap in a plot."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def _for_plotly(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The trace with its plain texts escaped: plotly reads some HTML tags and entities in names and labels."""

    def escaped(value: Any) -> Any:
        if isinstance(value, str):
            return html.escape(value)
        return [escaped(one) for one in value] if isinstance(value, (list, tuple)) else value

    return {key: escaped(value) if key in ("name", "x", "y", "text") else value for key, value in trace.items()}


def _colour(trace: Mapping[str, Any]) -> str:
    colour = trace.get("line", trace.get("marker", {})).get("color", "var(--ink)")
    return colour if isinstance(colour, str) else "var(--ink)"
