"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aisec_fast
from aisec_fast.cli import _accounting, _output, main


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info"]) == 0
    assert "native" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["numba"] == "available"
    assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
    assert "threads" in json.loads((tmp_path / "info.json").read_text())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aisec_fast {aisec_fast.__version__}\n"


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


def test_noise_for_a_target_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    budget = [
        "epsilon",
        "--target-epsilon",
        "3",
        "--sample-rate",
        "1/100",
        "--epochs",
        "2",
        "--delta",
        "1e-5",
        "--json",
    ]
    assert main([*budget, "--accountant", "rdp", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == 200
    assert 2.99 < answer["epsilon"] <= 3


def test_noise_multiplier(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--sample-rate", "1/100", "--epochs", "2", "--delta", "1e-5", "--accountant", "rdp", "--json"]
    assert main(["noise-multiplier", "--target-epsilon", "3", *run]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(["epsilon", "--target-epsilon", "3", *run]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert answer["steps"] == 200
    assert main(["noise-multiplier", "--target-epsilon", "0", *run]) == 2
    assert "target_epsilon is 0.0, expected a number above 0" in capsys.readouterr().err


def test_audit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Fails with a probability of at most 1e-6, the confidence that is asked for."""
    file = tmp_path / "audit.json"
    arguments = ["audit", "--target-epsilon", "1", "--epochs", "1", "--canaries", "300", "--confidence", "0.999999"]
    assert main([*arguments, "--json", str(file)]) == 0
    assert "not contradicted" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["passed"] is True
    assert result["epsilon_lower"] <= result["claimed"] <= 1
    assert (result["canaries"], result["guesses"], result["steps"], result["epochs"]) == (300, 60, 3, 1)


def test_an_audit_that_refutes_ends_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from aisec_fast import audit

    found = audit.AuditReport(
        epsilon_lower=5.0,
        epsilon_lower_any=4.0,
        claimed=3.0,
        passed=False,
        delta=1e-5,
        confidence=0.95,
        canaries=1000,
        guesses=200,
        correct=190,
        steps=30,
    )
    monkeypatch.setattr(audit, "one_run", lambda *_, **__: found)
    assert main(["audit", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["correct"] == 190
    assert main(["audit"]) == 1
    assert "REFUTED" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--canaries", "5"), ("--confidence", "1"), ("--guesses", "5000")])
def test_an_audit_that_cannot_be(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", option, value]) == 2
    assert option.strip("-") in capsys.readouterr().err


def test_no_noise_costs_infinite_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["epsilon", "--noise-multiplier", "0", "--sample-rate", "0.1", "--steps", "1", "--delta", "1e-5"]
    assert main(arguments) == 0
    assert "infinite" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] is None


def test_steps_of_rounds_up_but_not_for_a_rounding_error() -> None:
    assert _accounting.steps_of(1, 1 / 469) == 469
    assert _accounting.steps_of(1.5, 0.1) == 15
    assert _accounting.steps_of(1, 0.3) == 4


def test_a_destination_that_cannot_be_written_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["demo", "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["demo", "--json", str(tmp_path / "missing" / "demo.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "demo.json"
    file.write_text("old")
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _output.write_json({}, str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
    assert file.read_text() == "old"


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, link, output = tmp_path / "pipe", tmp_path / "null", tmp_path / "stdout"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    output.symlink_to("/proc/self/fd/1")
    for path in (pipe, link, output):
        assert main(["info", "--json", str(path)]) == 2
        assert "is a device, pipe or socket, expected a file to write to" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert output.is_symlink()


def test_a_link_to_an_open_file_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However many links lead there, and whatever is open: a plain file, if output goes to one."""
    link, file = tmp_path / "link", tmp_path / "file"
    with file.open("w") as opened:
        for target in (f"/proc/self/fd/{opened.fileno()}", f"/dev/fd/{opened.fileno()}"):
            (tmp_path / "first").symlink_to(target)
            link.symlink_to("first")
            for path in (link, tmp_path / "first", Path(target)):
                assert main(["info", "--json", str(path)]) == 2
                assert "is a device, pipe or socket, expected a file to write to" in capsys.readouterr().err
            assert link.is_symlink()
            link.unlink()
            (tmp_path / "first").unlink()
    link.symlink_to("file")
    assert main(["info", "--json", str(link)]) == 0


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*demo\.json"):
        _output.write_json({}, str(tmp_path / "demo.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["epsilon"],
        ["epsilon", "--noise-multiplier", "1", "--sample-rate", "1/0", "--steps", "100", "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "1", "--sample-rate", "0.1", "--epochs", "nan", "--delta", "1e-5"],
        ["noise-multiplier", "--sample-rate", "0.1", "--steps", "100", "--delta", "1e-5"],
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
    assert set(result) >= {
        "epsilon",
        "delta",
        "accuracy",
        "step_time_ratio",
        "robust_accuracy",
        "manifest",
        "throughput",
    }
    assert 0 < result["epsilon"] <= 3.0
    assert result["accuracy"]["plain"] > 0.7
    for name in ("plain", "private"):
        shares = list(result["robust_accuracy"][name].values())
        assert shares[0] == pytest.approx(result["accuracy"][name])
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] < shares[0]
    assert result["manifest"]["verified"] is True
    assert result["manifest"]["tampered_file"] == "weights.pt"
    assert {row["backend"] for row in result["throughput"]} >= {"native", "numba", "torch", "numpy", "hashlib"}
    assert {row["family"] for row in result["throughput"]} == {"noise", "clipping", "hashing", "adversarial"}
    assert "report.html" in capsys.readouterr().out
    assert "Trained privately, attacked, sealed, verified." in (tmp_path / "report.html").read_text()
    assert main(["verify", "demo-model", "--manifest", "demo-model/manifest.json"]) == 0
    weights = tmp_path / "demo-model" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["verify", "demo-model", "--manifest", "demo-model/manifest.json"]) == 1
    assert "weights.pt" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-model", "demo.json", "report.html"]


def test_the_demo_does_not_remove_what_is_not_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-model").mkdir()
    (tmp_path / "demo-model" / "thesis.txt").write_text("years of work")
    assert main(["demo", "--quick"]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "demo-model" / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_demo_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aisec_fast.cli.demo import parts

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "train", interrupt)
    assert main(["demo", "--quick"]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


def test_an_interrupted_seal_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from rich.console import Console

    from aisec_fast.cli.demo import parts, seal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    class Private:
        model = torch.nn.Linear(2, 2)

    class Models:
        private = Private

    console, folder = Console(quiet=True), tmp_path / "demo-model"
    first = parts.seal(console, Models, {"epsilon": 3.0}, folder)["manifest"]
    assert first["verified"]
    assert first["tampered_file"] == seal.WEIGHTS
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {seal.WEIGHTS, seal.CARD, seal.MANIFEST}
    monkeypatch.setattr(seal, "publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        parts.seal(console, Models, {"epsilon": 4.0}, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo-model"]
    monkeypatch.undo()
    parts.seal(console, Models, {"epsilon": 4.0}, folder)  # replaces the old one
    assert json.loads((folder / seal.CARD).read_text())["epsilon"] == 4.0
    assert [path.name for path in tmp_path.iterdir()] == ["demo-model"]


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it now fails as if it were not installed
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "scikit-learn" in message
    assert "pip install '.[demo]' in a checkout of aisec_fast" in message
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_keeps_its_traceback_and_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (ModuleNotFoundError("No module named 'nonsense'", name="nonsense"), RuntimeError("nonsense")):
        monkeypatch.setattr("aisec_fast.info", lambda error=error: (_ for _ in ()).throw(error))
        assert main(["info"]) == 2
        message = capsys.readouterr().err
        assert "Traceback" in message
        assert "nonsense" in message


def test_complaints_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", "--x\x1b[31mEVIL\x1b]0;t\a", "file"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_no_verdict(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, stream, None)
    assert main(["info"] if stream == "stdout" else ["verify", "missing", "--manifest", "missing"]) == 2


def test_an_accountant_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    run = ["epsilon", "--noise-multiplier", "1", "--sample-rate", "0.1", "--steps", "1", "--delta", "1e-5"]
    assert main(run) == 2
    assert "pip install '.[privacy]'" in capsys.readouterr().err
