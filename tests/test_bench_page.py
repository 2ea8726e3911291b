"""The page of `aisec-fast bench`, made from the committed results, without and in headless Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aisec_fast.cli import _output
from aisec_fast.cli.bench import _cases, _page
from aisec_fast.cli.bench._noise import VARIANTS
from aisec_fast.cli.bench._page import OPERATIONS

from .test_report import Visit, chromium, sections, visit

__all__ = ["chromium"]  # the fixture

pytest.importorskip("plotly", reason="the extra report is not installed")
pytest.importorskip("jinja2", reason="the extra report is not installed")

RESULTS = max((Path(__file__).parent.parent / "benchmarks" / "results").glob("bench-*.json"))
DOCUMENT = json.loads(RESULTS.read_text())
ROWS = DOCUMENT["rows"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "benchmarks.html"
    _output.write_text(_page.build(DOCUMENT), str(path))
    return path


@pytest.fixture(scope="module")
def desktop(chromium: Any, file: Path) -> Visit:
    return visit(chromium, file, viewport={"width": 1440, "height": 900}, color_scheme="light")


def test_every_kernel_has_its_operations_counted() -> None:
    kernels = {case.operation for case in _cases.all_cases([1024], [1]) if case.bytes_per_value}
    assert kernels <= set(OPERATIONS) <= kernels | set(VARIANTS)
    assert {row["operation"] for row in ROWS if row["gb_per_s"]} <= set(OPERATIONS)


def test_sections(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sections(file.read_text()) == ["throughput", "steps", "roofline", "rows", "method"]
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    some = [row for row in ROWS if row["operation"] == "linf_step"]
    on_gpu = [{**row, "backend": "cuda", "instruction_set": None, "device": "cuda"} for row in some[:1]]
    made = _page.build({**DOCUMENT, "rows": [*some, *on_gpu]})
    assert sections(made) == ["throughput", "roofline", "gpu", "rows", "method"]


def test_a_transfer_is_counted_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 floats and 4096 bytes take the same way; for each value it is 8 ns of the one, 2 ns of the other."""
    common = {
        "instruction_set": None,
        "threads": 1,
        "private_safe": True,
        "gb_per_s": 1.0,
        "floor_ns": 1.0,
        "device": "cuda",
    }
    cases = [("f", "transfer", 1024, "float32", 8.0, None), ("noise", "add_gaussian", 1024, "float32", 1.0, 9.5)]
    cases += [("hashing", "blake3", 4096, "uint8", 1.0, 2.5)]
    rows = []
    for family, operation, size, dtype, gpu, cpu in cases:
        row = {**common, "family": family, "operation": operation, "size": size, "shape": [size], "dtype": dtype}
        rows.append({**row, "backend": "cuda", "ns": gpu})
        rows += [{**row, "backend": "native", "device": "cpu", "ns": cpu}] if cpu else []
    section = _page._break_even(rows)
    assert section
    (table,) = section.blocks
    assert [(one["operation"], one["transfer"], one["wins"], one["wins_moved"]) for one in table.rows] == [
        ("add_gaussian", 8.0, True, True),
        ("blake3", 2.0, True, False),
    ]


def test_what_was_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    skipped = [{"case": "blake3 [<i>]", "contender": "all", "reason": "not enough memory at this size"}]
    made = _page.build({**DOCUMENT, "skipped": skipped, "interrupted": True})
    assert "blake3 [&lt;i&gt;], all: not enough memory" in made
    assert "Interrupted" in made


def test_nothing_goes_wrong_or_out(desktop: Visit, file: Path) -> None:
    assert desktop.messages == []
    assert desktop.requests == [file.as_uri()]


def test_every_operation_is_plotted_with_its_floor(desktop: Visit) -> None:
    drawn = desktop.page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.plot')].map((p) => [p.dataset.figure, p.data.map((t) => t.name)]))"
    )
    for operation, threads in {(row["operation"], row["threads"]) for row in ROWS if row["gb_per_s"]}:
        names = drawn[f"{operation}-{threads}"]
        assert names[-1] == "floor"
        assert any(name.startswith("numba") for name in names)  # a star follows where a measurement was disturbed
        assert any(name.startswith("native") for name in names)
    kind = "[...document.querySelectorAll('.plot')].map((p) => p._fullLayout.xaxis.type)"
    assert set(desktop.page.evaluate(kind)) == {"log"}


def test_the_table_filters_and_sorts(desktop: Visit) -> None:
    page = desktop.page
    rows = page.locator("#rows tbody tr:visible")
    assert rows.count() == len(ROWS)
    page.locator("#rows select").first.select_option("hashing")
    assert rows.count() == sum(row["family"] == "hashing" for row in ROWS)
    heads = [head.strip() for head in page.locator("#rows thead th").all_inner_texts()]
    column = next(i for i, head in enumerate(heads) if head.startswith("ns / value"))
    page.locator("#rows thead th button").nth(column).click()
    shown = [
        float(re.sub("[^0-9.]", "", text))
        for text in page.locator(f"#rows tbody tr:visible td:nth-child({column + 1})").all_inner_texts()
    ]
    assert shown in (sorted(shown), sorted(shown, reverse=True))
    assert len(shown) > 10


def test_a_phone_scrolls_down_only(chromium: Any, file: Path) -> None:
    phone = visit(chromium, file, viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert phone.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert phone.messages == []
