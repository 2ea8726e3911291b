"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aisec_fast.cli import main


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info"]) == 0
    assert "native" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["numba"] == "available"
    assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
    assert "threads" in json.loads((tmp_path / "info.json").read_text())


def test_the_installed_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "aisec_fast", "info", "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(run.stdout)["version"]


def test_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    from aisec_fast.accounting import get_epsilon

    arguments = ["epsilon", "--noise-multiplier", "1.1", "--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"]
    assert main([*arguments, "--json"]) == 0
    expected = get_epsilon(noise_multiplier=1.1, sample_rate=0.01, steps=100, delta=1e-5)
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(expected)
    assert main(arguments) == 0
    assert "epsilon" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["epsilon"],
        ["epsilon", "--noise-multiplier", "-1", "--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    result = json.loads((tmp_path / "demo.json").read_text())
    assert set(result) >= {"epsilon", "delta", "accuracy", "step_time_ratio", "throughput"}
    assert 0 < result["epsilon"] <= 3.0
    assert result["accuracy"]["plain"] > 0.7
    assert {row["backend"] for row in result["throughput"]} >= {"native", "numba", "torch", "numpy"}
    assert "docs/noise.md" in capsys.readouterr().out


def test_an_interrupted_demo_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aisec_fast.cli import demo

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_training", interrupt)
    assert main(["demo", "--quick"]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it now fails as if it were not installed
    assert main(["demo"]) == 2
    assert "pip install" in capsys.readouterr().err
