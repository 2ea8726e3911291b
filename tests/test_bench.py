"""The benchmark harness: what it checks, what it writes, how it compares. No test looks at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aisec_fast
from aisec_fast import _core, get_num_threads
from aisec_fast._backends import HASHING_ONLY
from aisec_fast.cli import main
from aisec_fast.cli.bench import _cases, _measure, _page, _results
from aisec_fast.cli.bench._kernels import DifferenceError, close, same_bits

SMALL = ["--size", "1024", "--threads", "1", "--rounds", "3"]


def small_case(operation: str) -> _measure.Case:
    return next(case for case in _cases.all_cases([1024], [1]) if case.operation == operation)


KERNELS = sorted({case.operation for case in _cases.all_cases([1024], [1]) if case.bytes_per_value})


@pytest.mark.parametrize("operation", KERNELS)
def test_every_kernel_is_checked_and_timed(operation: str) -> None:
    before = _core.instruction_set(), get_num_threads()
    rows, skipped = _measure.measure(small_case(operation), 3, most_seconds=60)
    assert not skipped
    expected = set(_core.instruction_sets()) - (set() if small_case(operation).family == "hashing" else HASHING_ONLY)
    assert {row["instruction_set"] for row in rows if row["backend"] == "native"} == expected
    ours = [row for row in rows if row["backend"] in _measure.OURS]
    assert {row["checked"] for row in ours} == {"bits"}
    for row in rows:
        assert row["ns"] > 0
        assert row["floor_ns"] > 0
        assert row["quartiles"][0] <= row["ns"] <= row["quartiles"][1]
    noisy = small_case(operation).family in ("noise", "update") or operation == "private_sum"
    assert all(row["private_safe"] != noisy for row in rows if row["backend"] in ("torch", "numpy"))
    assert (_core.instruction_set(), get_num_threads()) == before


@pytest.mark.parametrize("operation", KERNELS)
def test_a_wrong_result_stops_the_case(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of the result is flipped: a check that does not notice is no check."""
    contenders, _ = small_case(operation).prepare()
    ours = next(one for one in contenders if one.backend == "native")
    from aisec_fast.cli.bench import _kernels

    whole = _kernels.to_numpy

    def flipped(value: Any) -> Any:
        result = np.array(whole(value))
        if result.dtype == np.uint8:
            result[0] ^= 1
        else:
            result.reshape(-1)[:1].view(np.uint32)[0] ^= 1
        return result

    monkeypatch.setattr(_kernels, "to_numpy", flipped)
    with ours.active(), pytest.raises(AssertionError):
        ours.check()


def test_the_checks_can_fail() -> None:
    assert same_bits(np.float32([1, 2]))(np.float32([1, 2, 9])) == "bits"
    for wrong in (np.float32([1, 3]), np.float32([1]), np.float32([-1, 2])):
        with pytest.raises(DifferenceError):
            same_bits(np.float32([1, 2]))(wrong)
    with pytest.raises(DifferenceError):
        same_bits(np.float32([0.0]))(np.float32([-0.0]))
    close(np.float64([1, 2]), 1e-3)(np.float32([1.001, 2]))
    for wrong in ([1.1, 2], [np.nan, 2]):
        with pytest.raises(DifferenceError):
            close(np.float64([1, 2]), 1e-3)(np.float32(wrong))


def test_whole_steps_are_checked() -> None:
    whole = [case for case in _cases.all_cases([1024], [1]) if not case.bytes_per_value]
    steps = [case for case in whole if case.family != "ghost"]
    assert {case.operation for case in steps} == {
        *("pgd_cnn", "pgd_mlp", "pgd_resnet", "pgd_early_cnn", "pgd_early_resnet"),
        *("step_cnn", "step_mlp", "step_resnet", "step_transformer"),
    }
    for case in steps:
        if case.operation in ("pgd_resnet", "pgd_early_resnet") or case.shape[-1] in (58, 20):
            continue  # as with the small network, and a minute
        contenders, floors = case.prepare()
        assert floors
        ours = next(one for one in contenders if one.backend == "native")
        with ours.active():
            checked = ours.check()
            assert checked == "1e-4" or checked.endswith(("equal", "left"))


@pytest.mark.parametrize("operation", ["gram_squares", "conv_gram_squares", "conv_rows"])
def test_layers_are_checked(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of each: ours and torch's per-sample gradients agree, and a wrong norm would be seen."""
    cases = [case for case in _cases.all_cases([1024], [1]) if case.operation == operation]
    smallest = min(cases, key=lambda case: np.prod(case.shape))
    rows, skipped = _measure.measure(smallest, 3, most_seconds=60, backend="native")
    assert not skipped
    checked = {row["backend"]: row["checked"] for row in rows}
    assert checked.pop("torch plain", "no norms") == "no norms"
    assert set(checked.values()) == {"1.0e-04"}
    from aisec_fast.cli.bench import _kernels

    monkeypatch.setattr(_kernels, "to_numpy", lambda value: np.array(value) * 1.001)
    ours = next(one for one in smallest.prepare()[0] if one.backend == "native")
    with ours.active(), pytest.raises(DifferenceError):
        ours.check()


def test_a_wrong_result_ends_with_1_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = _measure.measure

    def faulty(case: _measure.Case, *arguments: Any, **options: Any) -> Any:
        if case.operation == "clip_and_sum":
            raise DifferenceError("differs from the reference")
        return measure(case, *arguments, **options)

    monkeypatch.setattr(_measure, "measure", faulty)
    file = tmp_path / "bench.json"
    operations = ["--operation", "per_sample_norms", "--operation", "clip_and_sum"]
    assert main(["bench", *operations, *SMALL, "--json", str(file)]) == 1
    assert "wrong: differs from the reference" in " ".join(capsys.readouterr().out.split())
    document = json.loads(file.read_text())
    assert {row["operation"] for row in document["rows"]} == {"per_sample_norms"}
    assert [one["reason"] for one in document["skipped"]] == ["wrong: differs from the reference"]
    assert document["command"].startswith("aisec-fast bench --")
    assert "--operation per_sample_norms" in document["command"]


def test_results_name_what_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "--operation", "per_sample_norms", *SMALL, "--json", str(file)]) == 0
    assert "per_sample_norms" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert set(document) >= {"format", "version", "commit", "date", "machine", "versions", "rows", "interrupted"}
    assert set(document["rows"][0]) >= {
        "family",
        "operation",
        "backend",
        "size",
        "ns",
        "quartiles",
        "floor_ns",
        "checked",
    }
    page = _page.build(document)
    assert "per_sample_norms" in page


def test_no_number_is_cut_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(_measure, "measure", long(_measure.measure))
    assert main(["bench", *SMALL, "--operation", "linf_step"]) == 0
    printed = capsys.readouterr().out
    assert "1,000,000.123" in printed
    assert "…" not in printed


def long(measure: Any) -> Any:
    """The same rows with long numbers."""

    def marked(*arguments: Any, **options: Any) -> Any:
        rows, skipped = measure(*arguments, **options)
        return [{**row, "ns": 1_000_000.123, "busy": True} for row in rows], skipped

    return marked


def test_json_needs_no_rich(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rich", None)
    file = str(tmp_path / "bench.json")
    run = ["bench", *SMALL, "--operation", "blake3"]
    assert main([*run, "--json", file]) == 0
    assert _results.load(Path(file))["rows"]
    assert main(["bench", "--compare", file, file, "--json", "-"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["rows"]
    assert main(run) == 2
    assert "bench without --json needs rich" in capsys.readouterr().err


def test_an_interrupted_run_saves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = _measure.measure, []

    def second_is_interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(_measure, "measure", second_is_interrupted)
    file = tmp_path / "bench.json"
    assert main(["bench", "--family", "clipping", *SMALL, "--json", str(file)]) == 130
    document = json.loads(file.read_text())
    assert document["interrupted"]
    assert {row["operation"] for row in document["rows"]} == {"per_sample_norms"}


def test_what_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aisec_fast.cli.bench._available_memory", lambda: 1000)
    file = tmp_path / "bench.json"
    assert main(["bench", "--operation", "per_sample_norms", *SMALL, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["rows"] == []
    assert "memory" in document["skipped"][0]["reason"]


def test_a_contender_that_is_too_slow_is_left_out() -> None:
    rows, skipped = _measure.measure(small_case("per_sample_norms"), 3, most_seconds=0.0)
    assert rows == []
    assert len(skipped) >= 3


def a_row(ns: float, **more: Any) -> dict[str, Any]:
    named = {"family": "f", "operation": "o", "shape": [8], "dtype": "float32", "backend": "native", "device": "cpu"}
    return {
        **named,
        "instruction_set": None,
        "threads": 1,
        "ns": ns,
        "quartiles": [ns * 0.99, ns * 1.01],
        "busy": False,
        **more,
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (a_row(10), a_row(12), "slower"),
        (a_row(12), a_row(10), "faster"),
        (a_row(10), a_row(10.5), ""),
        (a_row(10, quartiles=[9, 13]), a_row(12), ""),  # quartiles overlap
        (a_row(10), a_row(12, busy=True), ""),
    ],
)
def test_compare(before: dict[str, Any], after: dict[str, Any], verdict: str) -> None:
    (row,) = _results.compare({"rows": [before]}, {"rows": [after]})
    assert row["verdict"] == verdict
    assert row["ratio"] == after["ns"] / before["ns"]


def test_compare_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, other = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    assert main(["bench", "--operation", "per_sample_norms", *SMALL, "--json", str(first)]) == 0
    document = json.loads(first.read_text())
    for row in document["rows"]:
        row.update(busy=False, ns=2 * row["ns"], quartiles=[2 * ns for ns in row["quartiles"]])
        row["quartiles"][0] = max(row["quartiles"][0], 0.99 * row["ns"])
    second.write_text(json.dumps(document))
    before = json.loads(first.read_text())
    for row in before["rows"]:
        row.update(busy=False, quartiles=[row["ns"], row["ns"]])
    first.write_text(json.dumps(before))
    capsys.readouterr()
    assert main(["bench", "--compare", str(first), str(second)]) == 1
    assert "slower" in capsys.readouterr().out
    assert main(["bench", "--compare", str(first), str(first)]) == 0
    other.write_text(json.dumps({**document, "format": 99}))
    assert main(["bench", "--compare", str(first), str(other)]) == 2
    assert "format 99" in capsys.readouterr().err
    other.write_text("[]")
    assert main(["bench", "--compare", str(first), str(other)]) == 2


def a_document(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {"format": 1, "version": "1", "commit": None, "date": "d", "machine": {"model": "m"}}
    return {**named, "rows": list(rows), **more}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(a_document({**a_row(10), "ns": "x"})),
        json.dumps(a_document({**a_row(10), "ns": float("nan")})),
        json.dumps(a_document({**a_row(10), "ns": 0})),
        json.dumps(a_document({key: value for key, value in a_row(10).items() if key != "ns"})),
        json.dumps({**a_document(a_row(10)), "machine": {}}),
        json.dumps({**a_document(), "rows": 3}),
        json.dumps(a_document({**a_row(10), "shape": ["8"]})),
        '{"format": 1, "rows": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_compare_refuses_what_is_no_result(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "a.json", tmp_path / "b.json"
    good.write_text(json.dumps(a_document(a_row(10))))
    bad.write_text(text)
    assert main(["bench", "--compare", str(good), str(bad)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_compare_tells_rows_without_a_partner_and_shows_no_control(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text(json.dumps(a_document(a_row(10), a_row(10, operation="gone"), commit="\x1b]0;evil\a[/nope]")))
    two.write_text(json.dumps(a_document(a_row(10), version="[blink]")))
    assert main(["bench", "--compare", str(one), str(two)]) == 0
    shown = capsys.readouterr().out
    assert "1 rows of the first file and 0 of the second" in " ".join(shown.split())
    assert "\x1b" not in shown
    assert "[blink]" in shown
    assert "[/nope]" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--size", "1"], "--size is 1"),
        (["--threads", "0"], "--threads is 0"),
        (["--operation", "nonsense"], "no case is left"),
        (["--compare", "missing-a.json", "missing-b.json"], "missing-a.json"),
        (["--json", "/proc/nowhere/x.json"], "/proc/nowhere"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_forced_backend_that_is_missing_raises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    if aisec_fast.info()["cuda"]["devices"]:
        pytest.skip("a CUDA device is here")
    assert main(["bench", "--backend", "cuda", *SMALL]) == 2
    assert "cuda" in capsys.readouterr().err


def test_transfers_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU: a copy stands in for the way there."""
    from aisec_fast.cli.bench import _transfer

    assert list(_transfer.cases([1024])) == [] or aisec_fast.info()["cuda"]["devices"]
    monkeypatch.setattr(_transfer, "on_gpu", lambda values: (values.copy(), lambda: None))
    contenders, floors = _transfer._prepare(1024)
    assert [one.backend for one in contenders] == ["cuda"]
    assert contenders[0].check() == "bits"
    assert floors
    monkeypatch.setattr(_transfer, "on_gpu", lambda values: (values + 1, lambda: None))
    with pytest.raises(DifferenceError):
        _transfer._prepare(1024)[0][0].check()


@pytest.mark.parametrize(("weight", "offset"), [(0.9, 0.0), (1.1, 0.0), (1.0, 1e-5), (float("nan"), 0.0)])
def test_a_wrong_step_is_found(weight: float, offset: float) -> None:
    from aisec_fast.cli.bench import _training

    def wrong(bench: Any, multiplier: float) -> Any:
        step = _training.private(bench, multiplier)

        def call() -> None:
            step()
            first = next(bench.model.parameters())
            for parameter in bench.model.parameters():
                parameter.grad.mul_(weight)
            first.grad.view(-1)[0] += offset

        return call

    with pytest.raises(DifferenceError):
        _training._check("cnn", "cpu", wrong)


def test_memory_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from aisec_fast.cli.bench import _training

    monkeypatch.setattr(_training, "BATCHES", {"mlp": 16})
    file = tmp_path / "memory.json"
    assert main(["bench", "--memory", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    peaks = row["peak_bytes"]
    weights = 4 * (784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10)
    assert weights <= peaks["plain"] < peaks["low"] < peaks["fast"] < 1.1 * weights
    assert "low / plain" in " ".join(capsys.readouterr().out.split())
    assert main(["bench", "--compare", str(file), str(file)]) == 2  # no times are in it
