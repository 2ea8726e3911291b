"""Results as a page: throughput against size for every operation, a roofline, where the GPU wins, and every row in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ..report.page import Block, Card, Column, Facts, Figure, Figures, Page, Section, Table, Words, render
from ..report.plots import line
from ._show import label

Row = Mapping[str, Any]
Document = Mapping[str, Any]

_COLOURS = {"native": "ours", "numba": "numba", "cuda": "cuda"}
_DASHES = {"baseline": "dash", "sse41": "dot", "avx2": None, "avx512": "dashdot"}
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")

# Arithmetic operations for each input value or byte, from the definitions (not measured): ChaCha12 has 576 for each 64
# bytes, BLAKE3 784 for each block of 64 (7 rounds of 8 quarter-rounds of 14), SHA-256 about 2,300 for each (64 rounds of
# about 28, and the schedule); a record of 24 bytes takes one block, two with HMAC; a Gaussian sample takes 8 bytes of stream and about 70 for the transform.
OPERATIONS = {
    "add_gaussian": 142.0,
    "add_laplace": 130.0,
    "add_gaussian_s256": 142.0,
    "add_gaussian_s1024": 142.0,
    "add_gaussian_float": 142.0,
    "add_laplace_float": 130.0,
    "discrete_gaussian": 112.0,
    "per_sample_norms": 2.0,
    "clip_and_sum": 4.0,
    "private_sum": 8.0,
    "blake3": 12.25,
    "sha256": 36.0,
    "records_blake3": 32.7,
    "records_hmac_sha256": 192.0,
    "file_blake3": 12.25,
    "large_files_sha256": 36.0,
    "small_files_sha256": 36.0,
    "linf_step": 8.0,
    "l2_step": 20.0,
    "l1_step": 60.0,  # five passes; the search for the vertex reads a small part of the row
    "l0_step": 90.0,
    "sgd": 145.0,
    "sgd_momentum": 149.0,
    "adam": 158.0,
}


def build(document: Document) -> str:
    """The page as HTML, self-contained. ModuleNotFoundError without plotly (the extra ``report``)."""
    rows = document["rows"]
    sections = [make(rows) for make in (_throughput, _steps, _roofline, _break_even, _table)]
    return render(
        Page(
            title="aisec_fast benchmarks",
            heading="Every kernel beside its floor.",
            lead=(
                f"{len(rows)} measurements on {document['machine']['model']}, {document['machine']['cores']} cores. Each result was "
                "compared with a float64 reference before it was timed; all contenders took turns in every round; the floor "
                "is a loop of the same memory traffic, or the plain training step, in the same rounds."
            ),
            cards=_cards(document),
            sections=[*filter(None, sections), _method(document)],
            data=document,
            data_name="benchmarks.json",
            footer="Made by aisec-fast bench. Everything on this page is in this file; it fetches nothing.",
        )
    )


def _cards(document: Document) -> list[Card]:
    rows = document["rows"]
    best: dict[str, Row] = {}
    for row in rows:
        if row["backend"] in _COLOURS and row["gb_per_s"]:
            key = row["operation"]
            if key not in best or row["percent_of_floor"] > best[key]["percent_of_floor"]:
                best[key] = row
    top = sorted(best.values(), key=lambda row: row["percent_of_floor"], reverse=True)[:3]
    cards = [
        Card(
            row["operation"], f"{row['percent_of_floor']:.0f} %", f"of the floor, {label(row)}, {row['size']:,} values"
        )
        for row in top
    ]
    busy = sum(row["busy"] for row in rows)
    cards.append(
        Card("Busy rows", f"{busy}", f"of {len(rows)}: others took over 10 % of the machine", "bad" if busy else "good")
    )
    if document["interrupted"]:
        cards.append(Card("Interrupted", "yes", "what was measured until then", "bad"))
    return cards


# --- Sections ---------------------------------------------------------------------------------------------------------


def _throughput(rows: Sequence[Row]) -> Section | None:
    figures = [figure for case, found in _by_operation(rows) if (figure := _curve(*case, found))]
    if not figures:
        return None
    intro = (
        "Values each second against the size of the input, both axes logarithmic, higher is better. The long-dashed line is the "
        "floor. Click a name to hide its line."
    )
    return Section("throughput", "Throughput", "Throughput against size", intro, [Figures(figures)])


def _by_operation(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str, int], list[Row]]]:
    def key(row: Row) -> tuple[str, str, int]:
        return row["family"], row["operation"], row["threads"]

    order = list(dict.fromkeys(map(key, rows)))
    for case, found in groupby(sorted(rows, key=lambda row: order.index(key(row))), key=key):
        yield case, list(found)


def _curve(family: str, operation: str, threads: int, rows: Sequence[Row]) -> Figure | None:
    if not rows[0]["gb_per_s"]:
        return None  # a whole step: it has no size
    traces = []
    contenders = list(dict.fromkeys((row["backend"], row["instruction_set"], label(row)) for row in rows))
    for number, (backend, isa, name) in enumerate(contenders):
        points = [row for row in rows if label(row) == name]
        traces.append(
            line(
                name,
                [row["size"] for row in points],
                [1e9 / row["ns"] for row in points],
                _COLOURS.get(backend, "peer"),
                dash=_DASHES.get(isa) if isa else None if backend in _COLOURS else "dot",
                symbol=_SYMBOLS[number % len(_SYMBOLS)],
            )
        )
    floors = {row["size"]: row["floor_ns"] for row in rows if row["device"] == "cpu" and row["floor_ns"]}
    if floors:
        traces.append(
            line("floor", list(floors), [1e9 / ns for ns in floors.values()], "floor", dash="dash", symbol="line-ew")
        )
    best = max(rows, key=lambda row: 1 / row["ns"])
    unit = "bytes" if family == "hashing" else "values"
    return Figure(
        f"{operation}-{threads}",
        f"{operation}, {threads} thread{'s' if threads > 1 else ''}",
        f"Lines of {unit} a second against size for {len(contenders)} contenders; the fastest is {label(best)} "
        f"with {1e9 / best['ns']:.3g} at {best['size']:,}",
        traces,
        {
            "xaxis": {"type": "log", "title": {"text": unit}, "dtick": 1},
            "yaxis": {"type": "log", "title": {"text": f"{unit} / s"}, "exponentformat": "power", "dtick": 1},
        },
        height=320,
    )


def _steps(rows: Sequence[Row]) -> Section | None:
    steps = [row for row in rows if not row["gb_per_s"]]
    if not steps:
        return None
    columns = [
        Column("operation", "step"),
        Column("label", "by"),
        Column("threads", "threads", 0),
        Column("ms", "ms", 2),
        Column("floor_ms", "floor ms", 2),
        Column("ratio", "times the floor", 2),
        Column("checked", "checked"),
    ]
    shown = [
        {
            **row,
            "label": label(row),
            "ms": row["ns"] / 1e6,
            "floor_ms": row["floor_ns"] / 1e6,
            "ratio": row["ns"] / row["floor_ns"],
        }
        for row in steps
    ]
    intro = "A whole step of training or of an attack, beside the plain step (or forward and backward pass) it cannot avoid."
    return Section("steps", "Steps", "Whole steps", intro, [Table("steps", "Steps beside their floor", columns, shown)])


def _roofline(rows: Sequence[Row]) -> Section | None:
    """Each operation at its largest size: operations a second against operations for each byte of traffic."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    roof = 0.0
    for row in rows:
        operations = OPERATIONS.get(row["operation"])
        if operations is None or row["backend"] not in _COLOURS or not row["gb_per_s"]:
            continue
        if row["size"] != max(r["size"] for r in rows if r["operation"] == row["operation"]):
            continue
        bytes_per_value = row["gb_per_s"] * row["ns"]
        roof = max(roof, bytes_per_value / row["floor_ns"]) if row["device"] == "cpu" and row["floor_ns"] else roof
        points.setdefault(label(row), []).append(
            (operations / bytes_per_value, operations / row["ns"], row["operation"])
        )
    if not points or not roof:
        return None
    intensities = [x for found in points.values() for x, _, _ in found]
    ends = [min(intensities) / 2, max(intensities) * 2]
    traces = []
    for number, (name, found) in enumerate(points.items()):
        xs, ys, names = zip(*sorted(found), strict=True)
        traces.append(
            line(
                name,
                xs,
                ys,
                _COLOURS[name.split()[0]],
                symbol=_SYMBOLS[number % len(_SYMBOLS)],
                mode="markers",
                text=list(names),
                hovertemplate="%{text}: %{y:.3g} Gop/s<extra></extra>",
            )
        )
    traces.append(line("memory roof", ends, [roof * x for x in ends], "floor", dash="dash", mode="lines"))
    figure = Figure(
        "roofline",
        "Operations a second against operations for each byte moved",
        f"Points of {len(points)} backends under the line of {roof:.1f} GB/s",
        traces,
        {
            "xaxis": {"type": "log", "title": {"text": "operations / byte"}},
            "yaxis": {"type": "log", "title": {"text": "Gop/s"}},
            "hovermode": "closest",
        },
        note="Operations are counted from the definitions of the kernels, not measured.",
        height=400,
    )
    intro = (
        "A kernel on the dashed line is as fast as memory allows; one far below it, to the right, is bound by arithmetic: "
        "noise and hashing compute a lot for each byte."
    )
    return Section("roofline", "Roofline", "Roofline", intro, [Figures([figure])])


def _break_even(rows: Sequence[Row]) -> Section | None:
    """The smallest size from which the GPU, transfers included and not, is faster than the CPU's best."""
    # ns for each byte that goes there and back, by the number of bytes: a value of hashing is a byte, of the others four.
    transfers = {4 * row["size"]: row["ns"] / 4 for row in rows if row["operation"] == "transfer"}
    found = []
    for (_, operation, threads), group in _by_operation(rows):
        for row in sorted((row for row in group if row["backend"] == "cuda"), key=lambda row: row["size"]):
            size, item = row["size"], 1 if row["dtype"] == "uint8" else 4
            ours = [r["ns"] for r in group if r["backend"] in ("native", "numba") and r["size"] == size]
            if ours:
                best, per_byte = min(ours), transfers.get(size * item)
                moved = None if per_byte is None else per_byte * item
                found.append(
                    {
                        "operation": operation,
                        "threads": threads,
                        "size": size,
                        "cpu": best,
                        "gpu": row["ns"],
                        "transfer": moved,
                        "wins": row["ns"] < best,
                        "wins_moved": moved is not None and row["ns"] + moved < best,
                    }
                )
    if not found:
        return None
    columns = [
        Column("operation", "operation", choose=True),
        Column("threads", "CPU threads", 0),
        Column("size", "values", 0),
        Column("cpu", "CPU ns", 3),
        Column("gpu", "GPU ns", 3),
        Column("transfer", "there and back ns", 3),
        Column("wins", "GPU wins"),
        Column("wins_moved", "even with transfer"),
    ]
    intro = (
        "Time for each value on the best CPU backend and on the GPU, with and without moving the data there and back."
    )
    return Section(
        "gpu", "CPU or GPU", "Where the GPU starts to win", intro, [Table("gpu", "CPU beside GPU", columns, found)]
    )


def _table(rows: Sequence[Row]) -> Section:
    columns = [
        Column("family", "family", choose=True),
        Column("operation", "operation", choose=True),
        Column("label", "backend", choose=True),
        Column("size", "values", 0),
        Column("threads", "threads", 0, choose=True),
        Column("ns", "ns / value", 3),
        Column("floor_ns", "floor ns", 3),
        Column("percent_of_floor", "% of floor", 1),
        Column("gb_per_s", "GB/s", 2),
        Column("checked", "checked"),
        Column("private_safe", "private-safe"),
        Column("busy", "busy"),
    ]
    shown = [{**row, "label": label(row)} for row in rows]
    return Section("rows", "Rows", "Every measurement", "", [Table("rows", "Every measurement", columns, shown)])


def _method(document: Document) -> Section:
    machine = document["machine"]
    facts = [
        ("machine", str(machine["model"])),
        ("system", str(machine["system"])),
        ("cores", str(machine["cores"])),
        ("instruction sets", ", ".join(machine["instruction_sets"])),
        ("CUDA devices", str(machine["cuda"]["devices"])),
        ("date", str(document["date"])),
        ("commit", str(document["commit"] or "an installed package")),
        ("command", str(document["command"])),
        ("took", f"{document['seconds']:.0f} s"),
        *((name, str(version)) for name, version in document["versions"].items()),
    ]
    blocks: list[Block] = [Facts(facts)]
    if document["skipped"]:
        blocks.append(
            Words([f"Left out: {one['case']}, {one['contender']}: {one['reason']}." for one in document["skipped"]])
        )
    intro = (
        "Median and quartiles of interleaved rounds. A row is marked busy if other processes took over 10 % of the machine "
        "while its case ran. Times on different machines, or in different runs, are not to be compared; ratios within a case are."
    )
    return Section("method", "Method", "How it was measured", intro, blocks)
