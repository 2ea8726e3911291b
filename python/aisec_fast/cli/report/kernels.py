"""How fast each kernel is on each backend: a section of a page, from the rows that ``cli.throughput`` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .page import Column, Figure, Figures, Section, Table
from .plots import bars, upright_line

Result = Mapping[str, Any]

# Our own backends first, each in its colour; what is not ours is grey.
_BACKEND_COLOURS = {"native": "ours", "numba": "numba", "cuda": "cuda"}


def section(result: Result) -> Section | None:
    """Bars for each operation and size, and every row in a table; None if the result has no row."""
    rows = result.get("throughput") or []
    if not rows:
        return None
    cases: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        cases.setdefault((row["family"], row["operation"], _shape(row)), []).append(row)
    height = 90 + 32 * max(map(len, cases.values()))
    figures = [_kernel(number, *case, found, height) for number, (case, found) in enumerate(cases.items())]
    unsafe = any(not row.get("private_safe", True) for row in rows)
    intro = (
        "Time for each input value, shorter is better. The dashed line is the floor: a loop on the same machine, in the same "
        "minutes, that does nothing but the least reading and writing that the operation needs."
        + (
            " Hatched bars are not private-safe: floating-point noise from a generator that can be predicted."
            if unsafe
            else ""
        )
    )
    table = Table(
        "throughput",
        "Throughput of every kernel on every backend",
        [
            Column("family", "family", choose=True),
            Column("operation", "operation", choose=True),
            Column("shape", "shape"),
            Column("label", "backend", choose=True),
            Column("threads", "threads", 0),
            Column("ns", "ns / value", 3),
            Column("floor_ns", "floor ns", 3),
            Column("percent_of_floor", "% of floor", 1),
            Column("gb_per_s", "GB/s", 1),
            Column("private_safe", "private-safe"),
        ],
        [{**row, "label": _backend(row), "shape": _shape(row)} for row in rows],
    )
    return Section(
        "throughput",
        "Throughput",
        "The kernels beside what memory allows",
        intro,
        [Figures(figures, small=True), table],
    )


def _kernel(number: int, family: str, operation: str, shape: str, rows: Sequence[Result], height: int) -> Figure:
    floors = sorted({row["floor_ns"] for row in rows if row.get("floor_ns")})
    best = min(rows, key=lambda row: row["ns"])
    longest = max([row["ns"] for row in rows] + floors)
    return Figure(
        f"throughput-{number}",
        f"{family}: {operation}",
        f"Bars of ns per value for {len(rows)} backends; the fastest is {_backend(best)} with {best['ns']:.3g}",
        [
            bars(
                "ns per value",
                [_short(_backend(row)) for row in rows],
                [row["ns"] for row in rows],
                [_BACKEND_COLOURS.get(row["backend"], "peer") for row in rows],
                [not row.get("private_safe", True) for row in rows],
                "ns",
            )
        ],
        {
            "shapes": [shape for floor in floors for shape in upright_line(floor)],
            "xaxis": {"title": {"text": "ns per value"}, "range": [0, 1.22 * longest], "nticks": 5, "fixedrange": True},
            "yaxis": {"autorange": "reversed", "fixedrange": True, "showgrid": False},
            "hovermode": "closest",
            "bargap": 0.35,
        },
        note=f"{shape} values; floor {', '.join(f'{floor:.3f}' for floor in floors)} ns"
        if floors
        else f"{shape} values",
        height=height,
    )


def _backend(row: Result) -> str:
    return " ".join(filter(None, (str(row["backend"]), row.get("instruction_set"))))


def _short(text: str) -> str:
    return text if len(text) <= 22 else text[:21] + "…"


def _shape(row: Result) -> str:
    extents: Sequence[int] = row.get("shape") or []
    return " \u00d7 ".join(f"{extent:,}" for extent in extents)
