"""Results as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.table import Table

from .._output import printable
from ._noise import YARDSTICK


def escape(text: object) -> str:
    """Text of a file, which may be anybody's, as rich shows it letter for letter."""
    return markup.escape(printable(str(text)))


def table(console: Console, document: dict[str, Any]) -> None:
    """One table for each operation: a line for each contender and size, its floor beside it."""
    wide = console.width >= 100
    for (family, operation), group in groupby(document["rows"], key=lambda row: (row["family"], row["operation"])):
        rows = list(group)
        # A whole step is told in ms, everything else in ns for each value.
        unit, scale = ("ms", 1e6) if not rows[0]["gb_per_s"] else ("ns/value", 1.0)
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{family}: {operation}", title_justify="left")
        shown.add_column("backend", no_wrap=True)
        yardstick = {_place(row): row["ns"] for row in rows if row["backend"] == YARDSTICK}
        share = wide or not yardstick  # there is no room for everything
        headings = ["size", "thr", unit, "floor", *(["% of floor"] if share else []), *(["GB/s"] if wide else [])]
        for heading in (*headings, *([f"/ {YARDSTICK}"] if yardstick else [])):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("checked", no_wrap=True)
        for row in rows:
            gb = row["gb_per_s"]
            shown.add_row(
                escape(label(row)),
                shape_of(row),
                str(row["threads"]),
                _digits(row["ns"] / scale),
                _digits(row["floor_ns"] / scale),
                *([f"{row['percent_of_floor']:.0f} %"] if share else []),
                *(["" if gb is None else f"{gb:.2f}"] if wide else []),
                *([f"{row['ns'] / yardstick.get(_place(row), math.nan):.2f}"] if yardstick else []),
                row["checked"] + (" [yellow]busy[/]" if row["busy"] else ""),
            )
        console.print(shown)
    for one in document["skipped"]:
        style = "red" if one["reason"].startswith("wrong") else "dim"
        text = f"left out: {one['case']}, {one['contender']}: {one['reason']}"
        console.print(f"[{style}]{escape(text)}[/]")
    rows = document["rows"]
    if any(not row["private_safe"] for row in rows):
        console.print("[dim]* not private-safe: floating-point noise, or a generator that can be predicted[/]")
    if busy := sum(row["busy"] for row in rows):
        console.print(
            f"[yellow]{busy} of {len(rows)} rows are marked busy: other programs took over 10 % of the machine[/]"
        )
    if document["interrupted"]:
        console.print("[yellow]interrupted: this is what was measured until then[/]")
    console.print(f"[dim]{len(rows)} rows in {document['seconds']:.0f} s on {escape(document['machine']['model'])}[/]")


def _digits(value: float) -> str:
    """Three after the point, and at least three that say something."""
    return f"{value:,.3f}" if value >= 0.1 else f"{value:.3g}"


def _place(row: Mapping[str, Any]) -> tuple[tuple[int, ...], int, str]:
    """What rows share that were measured in the same rounds on the same device."""
    return tuple(row["shape"]), row["threads"], row["device"]


def comparison(console: Console, before: dict[str, Any], after: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Rows of two documents, the largest change first."""
    for what in ("version", "commit", "date"):
        console.print(f"[dim]{what:<8} {escape(before[what])} -> {escape(after[what])}[/]")
    if before["machine"]["model"] != after["machine"]["model"]:
        console.print("[yellow]measured on different machines: only ratios within one file can be trusted[/]")
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("operation", "size", "thr", "backend"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("before", "after", "ratio"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", min_width=6, no_wrap=True)
    colours = {"slower": "red", "faster": "green", "": "dim"}
    for row in sorted(rows, key=lambda row: row["ratio"], reverse=True):
        shown.add_row(
            escape(row["operation"]),
            shape_of(row),
            str(row["threads"]),
            escape(label(row)),
            f"{row['before']:,.3f}",
            f"{row['after']:,.3f}",
            f"{row['ratio']:.2f}",
            f"[{colours[row['verdict']]}]{row['verdict']}[/]" if row["verdict"] else "",
        )
    console.print(shown)


def shape_of(row: Mapping[str, Any]) -> str:
    """ "64x65,536"."""
    return "x".join(f"{extent:,}" for extent in row["shape"])


def label(row: Mapping[str, Any]) -> str:
    """ "native avx2", "torch *", "torch on cuda"."""
    star = "" if row.get("private_safe", True) else "*"
    device = "" if row["device"] in ("cpu", row["backend"]) else f"on {row['device']}"
    return " ".join(filter(None, (row["backend"], device, row["instruction_set"], star)))
