"""``adversarial.evaluate``: the union of its attacks, resumable, and what its report says."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aisec_fast import adversarial
from aisec_fast.adversarial import GradientMaskingWarning, _ensembles, _masking, _state
from aisec_fast.adversarial._rows_seen import counting
from tests.conftest import bits
from tests.test_apgd import Counting, data, linear, net
from tests.test_pgd import assert_inside
from tests.test_pgd_torch import FINE, WRONG, Returns, X, Y, snapshot, user_model

SMALL = ("apgd-ce", "apgd-t", "square")


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch) -> Iterator[None]:
    """Attacks of 10 steps and 20 queries; one thread."""
    attacks = {
        **_ensembles.ATTACKS,
        "apgd-ce": _ensembles._auto_pgd("apgd-ce", "ce", steps=10),
        "apgd-dlr": _ensembles._auto_pgd("apgd-dlr", "dlr", steps=10),
        "apgd-margin": _ensembles._auto_pgd("apgd-margin", "margin", steps=10),
        "apgd-t": _ensembles._auto_pgd("apgd-t", "target_dlr", steps=10, targets=9),
        "square": _ensembles._random_search("square", n_queries=20),
    }
    monkeypatch.setattr(_ensembles, "ATTACKS", attacks)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(*args: Any, **options: Any) -> Any:
    """Without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)
        return adversarial.evaluate(*args, **{"attacks": SMALL, "seed": 0, **options})


def case(count: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, and samples of which every fifth has a wrong label."""
    model = net(classes=6)
    x, y = data(model, count)
    y[::5] = (y[::5] + 1) % 6
    return model, x, y


# ------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.45)])
def test_the_result_is_the_union_of_the_attacks(norm, eps) -> None:
    model, x, y = case(40)
    report = evaluate(model, x, y, eps=eps, norm=norm, attacks=["square", "apgd-ce", "apgd-t"])
    wrong = model(x).argmax(1) != y
    fooled, by = wrong.clone(), [""] * 40
    for name, attack in (
        ("square", partial(adversarial.square, n_queries=20)),
        ("apgd-ce", partial(adversarial.apgd, steps=10)),
        ("apgd-t", partial(adversarial.apgd, steps=10, loss="target_dlr")),
    ):
        adv = attack(model, x, y, eps=eps, norm=norm, seed=0)  # on all samples: the draws are the same
        for i in ((model(adv).argmax(1) != y) & ~fooled).nonzero()[:, 0].tolist():
            by[i] = name
            fooled[i] = True
    assert report.fooled_by == tuple(by)
    assert torch.equal(torch.tensor(report.robust()), ~fooled)
    assert report.robust_accuracy == pytest.approx((~fooled).double().mean().item())
    assert report.clean_accuracy == pytest.approx((~wrong).double().mean().item())
    assert len(set(by)) > 2
    assert_inside(report.x_adv, x, eps, norm, (0, 1))
    assert torch.equal(model(report.x_adv).argmax(1) != y, fooled)
    assert torch.equal(report.x_adv[wrong | ~fooled], x[wrong | ~fooled])
    assert np.array_equal(report.fooled_at == 0, wrong.numpy())


def test_only_survivors_go_on_and_nothing_is_asked_twice() -> None:
    model, x, y = case()
    counted = Counting(model)
    with counting() as seen:
        report = evaluate(counted, x, y, eps=0.1, masking_checks="none", batch_size=100)
    clean, *stages = report.stages
    assert (clean.samples, clean.newly_fooled, clean.forward_rows, clean.gradient_rows) == (30, 6, 30, 0)
    left = 24
    for stage, name in zip(stages, SMALL, strict=True):
        assert (stage.attack, stage.samples, stage.eps) == (name, left, 0.1)
        left -= stage.newly_fooled
        assert stage.robust_accuracy == pytest.approx(left / 30)
        assert stage.seconds > 0
    assert sum(stage.forward_rows for stage in report.stages) == seen.forward - 30  # a last look
    assert sum(stage.gradient_rows for stage in stages) == seen.gradient
    assert max(rows for rows, _ in counted.seen) <= 100
    # The budgets of who survives everything: 11 points, 5 targets of 11 points, 20 queries, and a verdict after each.
    assert stages[1].forward_rows >= left * 5 * 11
    assert 0 < left < 24
    report = evaluate(counted, x, y, eps=1e-9, masking_checks="none")
    assert [stage.forward_rows for stage in report.stages] == [30, 24 * 12, 24 * (5 * 11 + 1), 24 * 21]
    assert [stage.gradient_rows for stage in report.stages] == [0, 24 * 10, 24 * 50, 0]


def test_batches_do_not_change_the_verdicts() -> None:
    model, x, y = case(50)
    reports = [evaluate(model, x, y, eps=0.1, batch_size=size) for size in (7, 20, 250)]
    for report in reports[1:]:
        assert np.array_equal(report.fooled_at, reports[0].fooled_at, equal_nan=True)
        assert report.fooled_by == reports[0].fooled_by


def test_a_curve_keeps_what_smaller_radii_found() -> None:
    model, x, y = case(40)
    report = evaluate(model, x, y, eps=[0.16, 0.04, 0.08])
    assert report.eps == (0.04, 0.08, 0.16)
    shares = list(report.curve.values())
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3
    for eps in report.eps:
        adv = report.x_adv_at(eps)
        assert_inside(adv, x, eps, "linf", (0, 1))
        assert torch.equal(model(adv).argmax(1) == y, torch.tensor(report.robust(eps)))
        alone = evaluate(model, x, y, eps=eps)
        assert alone.robust_accuracy >= report.curve[eps]
    assert [stage.eps for stage in report.stages] == [0.0, *[0.04] * 3, *[0.08] * 3, *[0.16] * 3]
    assert report.robust_accuracy == report.curve[0.16]
    with pytest.raises(ValueError, match=r"^eps is 0.03, expected one of those evaluated: 0.04, 0.08, 0.16"):
        report.robust(0.03)


def test_a_linear_model_is_exact() -> None:
    weights = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = linear(weights)
    x = torch.rand(100, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    eps, apart = 0.06, weights[None] - weights[y][:, None]
    up, down = (x + eps).clamp(max=1) - x, (x - eps).clamp(min=0) - x
    gap = (apart * x[:, None]).sum(2) + torch.where(apart > 0, apart * up[:, None], apart * down[:, None]).sum(2)
    gap[torch.arange(100), y] = -math.inf
    report = evaluate(model, x, y, eps=eps, attacks=["apgd-ce", "apgd-t"])
    assert report.robust_accuracy == (gap.amax(1) < 0).double().mean().item()
    assert 0 < report.robust_accuracy < 1


def test_standard_is_autoattack(monkeypatch) -> None:
    """Budgets by name, and the whole ensemble on a model small enough."""
    names = [attack.name for attack in _ensembles.ENSEMBLES["standard"]]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [dict(attack.settings) for attack in _ensembles.ENSEMBLES["standard"]] == [
        {"loss": "ce", "steps": 100, "restarts": 1, "targets": None, "eot_iter": 1, "larger_eps": False},
        {"loss": "target_dlr", "steps": 100, "restarts": 1, "targets": 9, "eot_iter": 1, "larger_eps": False},
        {"steps": 100, "restarts": 1, "targets": 9},
        {"n_queries": 5000},
    ]
    short = _ensembles._boundary("fab-t", 9, steps=10)
    monkeypatch.setitem(
        _ensembles.ENSEMBLES,
        "standard",
        (*_ensembles.attacks_of(SMALL, "linf")[:2], short, _ensembles.ATTACKS["square"]),
    )
    model, x, y = case()
    report = evaluate(model, x, y, eps=0.1, attacks="standard")
    assert [stage.attack for stage in report.stages] == ["clean", *names]
    assert 0 < report.robust_accuracy < report.clean_accuracy


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_finds_what_torchattacks_finds(norm) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    model = net(classes=6).float()
    x, y = data(net(classes=6), 60, (1, 3, 4))
    x, eps = x.float(), {"linf": 0.12, "l2": 0.4}[norm]
    attack = _ensembles._auto_pgd("apgd-ce", "ce"), _ensembles._auto_pgd("apgd-t", "target_dlr", targets=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ensembles, "ATTACKS", {one.name: one for one in attack})
        report = evaluate(model, x, y, eps=eps, norm=norm, attacks=["apgd-ce", "apgd-t"])
    name = {"linf": "Linf", "l2": "L2"}[norm]
    first = torchattacks.APGD(model, norm=name, eps=eps, steps=100, n_restarts=1, loss="ce")(x, y)
    right = model(first).argmax(1) == y
    theirs = right.clone()
    second = torchattacks.APGDT(model, norm=name, eps=eps, steps=100, n_restarts=1, n_classes=6)(x[right], y[right])
    theirs[right] = model(second).argmax(1) == y[right]
    assert abs(report.robust().sum() - int(theirs.sum())) <= 1
    assert 5 < report.robust().sum() < 55


def test_random_models_are_attacked_through_their_mean() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net(classes=6)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x + 0.05 * torch.randn_like(x))

    assert [attack.settings["eot_iter"] for attack in _ensembles.ENSEMBLES["rand"]] == [20, 20]
    assert [attack.settings["steps"] for attack in _ensembles.ENSEMBLES["rand"]] == [100, 100]
    torch.manual_seed(0)
    model = Noisy()
    x, y = data(model.model, 6)
    with pytest.warns(GradientMaskingWarning, match="two passes over the same samples gave different logits"):
        adversarial.evaluate(model, x, y, eps=0.01, attacks=["apgd-ce"], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.MonkeyPatch.context() as patch:
            short = _ensembles._auto_pgd("apgd-ce", "ce", steps=3, eot_iter=20)
            patch.setitem(_ensembles.ENSEMBLES, "rand", (short,))
            report = adversarial.evaluate(model, x, y, eps=0.01, attacks="rand", seed=0)
    assert report.stages[1].gradient_rows >= 6 * 20


# ------------------------------------------------------------------------------------------------ checkpoints


class Stop(Exception):
    """An interruption."""


@pytest.mark.parametrize("parts", [1, 2, 4, 7])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(parts, tmp_path) -> None:
    model, x, y = case(40)
    options: dict[str, Any] = {"eps": [0.05, 0.15], "batch_size": 15}
    whole = evaluate(model, x, y, **options)
    path, saves = tmp_path / "state", []

    class Watched(_state.Checkpoint):
        def save(self, *args: Any, **more: Any) -> None:
            super().save(*args, **more)
            saves.append(1)
            if len(saves) == parts:
                raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aisec_fast.adversarial._evaluate.Checkpoint", Watched)
        with pytest.raises(Stop):
            evaluate(model, x, y, checkpoint=path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]  # nothing half-written lies about
    again = evaluate(model, x, y, checkpoint=str(path), **options)
    for name in ("fooled_at", "x_adv"):
        assert bits(getattr(again, name)) == bits(getattr(whole, name))
    assert again.fooled_by == whole.fooled_by
    assert again.warnings == whole.warnings
    for one, other in zip(again.stages, whole.stages, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}
    with counting() as seen:
        done = evaluate(model, x, y, checkpoint=path, **options)
    fooled = [bool((done.fooled_at[first : first + 15] > 0).any()) for first in (0, 15, 30)]
    looks = sum(size for size, one in zip((15, 15, 10), fooled, strict=True) if one)
    assert seen.forward == 40 + 15 + looks  # nothing is attacked again
    assert bits(done.x_adv) == bits(whole.x_adv)


def test_a_checkpoint_keeps_a_seed_from_the_system(tmp_path) -> None:
    model, x, y = case(10)
    one = evaluate(model, x, y, eps=0.03, seed=None, checkpoint=tmp_path / "a")
    two = evaluate(model, x, y, eps=0.03, seed=None, checkpoint=tmp_path / "a")
    other = evaluate(model, x, y, eps=0.03, seed=None)
    assert one.seed == two.seed != other.seed


def test_a_checkpoint_belongs_to_its_evaluation(tmp_path) -> None:
    model, x, y = case(10)
    path = tmp_path / "state"
    base: dict[str, Any] = {"model": model, "x": x, "y": y, "eps": 0.03, "checkpoint": path}
    evaluate(**base)
    kept = path.read_bytes()
    other = net(classes=6, seed=9)
    for change in (
        {"model": other}, {"x": x * 0.9}, {"y": y.flip(0)}, {"eps": 0.04}, {"eps": [0.03, 0.04]}, {"seed": 1},
        {"norm": "l2"}, {"attacks": SMALL[:2]}, {"batch_size": 9}, {"clip": (0, 2)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="belongs to another evaluation"):
            evaluate(**{**base, **change})
    np.save(path.with_suffix(".npy"), np.arange(3))
    for broken in (kept[: len(kept) // 2], b"", path.with_suffix(".npy").read_bytes()):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a whole checkpoint of an evaluation"):
            evaluate(**base)
    np.savez(
        path.with_suffix(".npz"),
        about=np.frombuffer(b'{"format": "x"}', np.uint8),
        fooled_at=0,
        fooled_by=0,
        open=0,
        fooled=0,
        adv=0,
    )
    with pytest.raises(ValueError, match="has format 'x'"):
        evaluate(**{**base, "checkpoint": path.with_suffix(".npz")})
    with pytest.raises(IsADirectoryError, match="is a folder"):
        evaluate(**{**base, "checkpoint": tmp_path})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        evaluate(**{**base, "checkpoint": tmp_path / "nowhere" / "state"})
    with pytest.raises(TypeError, match="checkpoint is an int, expected a path"):
        evaluate(**{**base, "checkpoint": 3})


@pytest.mark.parametrize("part", ["weight", "running_mean"])
def test_a_checkpoint_belongs_to_its_weights(part, tmp_path) -> None:
    """Answers at x do not tell: who evaluates the samples that are right has the same ones after more training."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 6)).eval()
    x = torch.rand(10, 3, 4, 4)
    y = model(x).argmax(1)
    options: dict[str, Any] = {"eps": 0.03, "seed": 0, "attacks": ["square"], "checkpoint": tmp_path / "state"}
    first = evaluate(model, x, y, **options)
    assert bits(evaluate(model, x, y, **options).x_adv) == bits(first.x_adv)
    with torch.no_grad():
        getattr(model[2], part).add_(1e-4)
    assert torch.equal(model(x).argmax(1), y)
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        evaluate(model, x, y, **options)


# ------------------------------------------------------------------------------------------------ masked gradients


def codes(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> set[str]:
    return {finding.code for finding in evaluate(model, x, y, **options).warnings}


class Around(nn.Module):
    """A model with something before or after it."""

    def __init__(self, model: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        return self.model(x) if self.after is None else self.after(self.model(x))


def test_a_sound_model_raises_no_warning() -> None:
    model = net(classes=6)
    x, y = data(model, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = adversarial.evaluate(model, x, y, eps=[0.05, 0.15], attacks=SMALL, seed=0, masking_checks="all")
    assert report.warnings == ()


def test_signs_of_masked_gradients_are_named() -> None:
    model = net(classes=6)
    x, y = data(model, 60)
    rounded = Around(
        model, before=lambda x: x + ((x * 8).round() / 8 - x).detach() * 0 + (x.round(decimals=1) - x).detach()
    )
    stairs = Around(model, before=lambda x: (x * 20).round() / 20 + 0 * x)  # a gradient of zero
    found = codes(stairs, x, y, eps=0.16, attacks=["apgd-ce", "apgd-t", "square"])
    assert {"zero_gradients", "loss_does_not_rise", "black_box_wins"} <= found
    assert "zero_gradients" not in codes(rounded, x, y, eps=0.05, attacks=["apgd-ce"])
    assert "black_box_wins" not in codes(stairs, x, y, eps=0.16, attacks=["square", "apgd-ce"])
    soft = Around(model, after=lambda z: z.softmax(1))
    assert "probabilities" in codes(soft, x, y, eps=0.05, attacks=["apgd-ce"])
    many = data(model, 150)
    assert "eps_does_not_help" in codes(stairs, *many, eps=[0.001, 0.004], attacks=["apgd-ce"])
    assert "eps_does_not_help" not in codes(stairs, x, y, eps=[0.001, 0.004], attacks=["apgd-ce"])  # too few to say so
    assert codes(stairs, x, y, eps=0.05, masking_checks="none") == set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adversarial.evaluate(stairs, x, y, eps=0.05, attacks="apgd-ce", seed=0)
    assert {one.category for one in caught} == {GradientMaskingWarning}
    assert {one.filename for one in caught} == {__file__}
    assert "apgd-ce: the gradient is zero everywhere for 60 of 60 samples" in str(caught[0].message)


def test_costly_checks_attack_on_their_own() -> None:
    model = net(classes=6)
    x, y = data(model, 40)
    stairs = Around(model, before=lambda x: (x * 20).round() / 20 + 0 * x)
    assert "unbounded_eps" in codes(stairs, x, y, eps=0.02, attacks=["apgd-ce"], masking_checks="all")
    # A slope whose sign turns every 0.04: what a step finds is chance.
    waves = Around(model, before=lambda x: x + 0.1 * torch.sin(x * 150))
    found = codes(waves, x, y, eps=0.03, attacks=["apgd-ce"], masking_checks="all")
    assert {"more_steps_help", "starts_differ", "loss_falls_with_eps"} & found


def test_each_costly_check_can_speak() -> None:
    """What they say of searches that went wrong, made up."""
    model, x, y = case(40)
    report = evaluate(model, x, y, eps=0.02, attacks=["apgd-ce"])
    numbers = iter(range(100))

    class Made:
        def __init__(self, job: Any) -> None:
            turn = next(numbers)
            count = len(job.numbers)
            self.fooled = np.arange(count) < (count if turn == 1 else 3 * turn)
            self.highest = np.full(count, -float(turn))

    from aisec_fast.adversarial import _arguments

    with pytest.MonkeyPatch.context() as patch, _arguments.attacked(model, x, y, clip=(0, 1)) as victim:
        patch.setattr(_masking, "_search", lambda job, ball, **_: Made(job))
        job = _ensembles.Job(
            module=model, victim=victim, likeliest=y[:, None], numbers=np.arange(40),
            ball=_masking.Ball(0.0, 1.0, "linf", 0.02), clip=(0, 1), seed=0, max_rows=40, report=print,
        )  # fmt: skip
        found = [finding.code for finding in _masking.costly(job, [0.02], report.fooled_at)]
    assert found == ["unbounded_eps", "more_steps_help", "starts_differ", "loss_falls_with_eps"]


# ------------------------------------------------------------------------------------------------ the report


def test_the_report_as_text_json_and_page(tmp_path, monkeypatch) -> None:
    model, x, y = case()
    report = evaluate(model, x, y, eps=[0.03, 0.06])
    text = str(report)
    assert text.startswith("L-infinity, 30 samples, clean accuracy 80.00%")
    assert "apgd-t" in text
    assert f"robust accuracy at eps 0.06: {report.robust_accuracy:.2%}" in text
    found = json.loads(report.to_json(tmp_path / "report.json"))
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert found["schema"] == "aisec_fast.adversarial.report/1"
    assert found["seed"] == "0"
    assert found["settings"]["attacks"][1] == {
        "name": "apgd-t", "loss": "target_dlr", "steps": 10, "restarts": 1, "targets": 9, "eot_iter": 1,
        "larger_eps": False,
    }  # fmt: skip
    assert set(found["versions"]) == {"aisec_fast", "python", "numpy", "torch"}
    assert [entry["value"] for entry in found["robust_accuracy"]] == list(report.curve.values())
    assert [at is None for at in found["fooled_at"]] == report.robust().tolist()
    assert len(found["stages"]) == 7
    with pytest.raises(IsADirectoryError):
        report.to_json(tmp_path)
    pytest.importorskip("plotly")
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"{report.robust_accuracy:.2%} robust at L∞ ε = 0.06." in page
    assert "apgd-t" in page
    monkeypatch.setitem(sys.modules, "jinja2", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"^this needs Jinja2: pip install '\.\[report\]'"):
        report.to_html(tmp_path / "report.html")


def test_unconfirmed_successes_count_as_robust() -> None:
    """A model whose answers change once all attacks are over."""
    model, x, y = case()
    calm = {"now": False}

    class Fickle(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return model(x) if calm["now"] and len(points) == 30 else model(points)

    def last(*args: Any) -> None:
        calm["now"] = args[0] == "apgd-ce" and args[1] == args[2]

    report = evaluate(Fickle(), x, y, eps=0.2, attacks=["apgd-ce"], progress=last)
    assert report.unconfirmed == report.stages[1].newly_fooled > 0
    assert report.robust_accuracy == report.clean_accuracy
    assert torch.equal(report.x_adv, x)
    assert "not in the last look" in str(report)


def test_progress_tells_the_running_robust_accuracy(capsys) -> None:
    model, x, y = case()
    told: list[tuple[str, int, int, float]] = []
    report = evaluate(model, x, y, eps=0.15, batch_size=10, progress=lambda *args: told.append(args))
    for name, stage in zip(SMALL, report.stages[1:], strict=True):
        ours = [entry for entry in told if entry[0] == name]
        assert [done for _, done, _, _ in ours] == sorted(done for _, done, _, _ in ours)
        assert ours[-1][1:] == (stage.samples, stage.samples, stage.robust_accuracy)
        accuracies = [accuracy for *_, accuracy in ours]
        assert accuracies == sorted(accuracies, reverse=True)
    pytest.importorskip("rich")
    evaluate(model, x, y, eps=0.05, attacks="apgd-ce", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "apgd-ce" in shown.err
    assert "robust" in shown.err


# ------------------------------------------------------------------------------------------------ attacks of all kinds


def test_functions_are_attacks() -> None:
    model, x, y = case()
    report = evaluate(
        model, x, y, eps=0.05, attacks=["apgd-ce", partial(adversarial.pgd, steps=5), partial(adversarial.pgd, steps=9)]
    )
    assert [stage.attack for stage in report.stages] == ["clean", "apgd-ce", "pgd #1", "pgd #2"]
    assert report.settings["attacks"][1] == {"name": "pgd #1", "steps": "5"}
    assert report.stages[2].gradient_rows > 0

    def far(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str, clip: Any, seed: int) -> Tensor:
        assert (eps, norm, clip, seed) == (0.2, "linf", (0.0, 1.0), 0)
        y.fill_(0)  # ours to spoil
        return x.add_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype))

    report = evaluate(model, x, y, eps=0.2, attacks=[far])
    assert_inside(report.x_adv, x, 0.2, "linf", (0, 1))
    assert report.robust_accuracy < report.clean_accuracy
    for result, error, message in (
        (lambda x: None, TypeError, "'<lambda>' returned a NoneType"),
        (lambda x: x[:1], ValueError, r"returned torch.float64 of shape \(1, 3, 4\)"),
        (lambda x: x.float(), ValueError, "returned torch.float32"),
        (lambda x: x * torch.nan, ValueError, "returned NaN"),
    ):
        with pytest.raises(error, match=message):
            evaluate(model, x, y, eps=0.05, attacks=[lambda model, x, y, result=result, **_: result(x)])


def test_few_classes() -> None:
    for classes, name in ((2, "apgd-margin"), (3, "apgd-dlr")):
        model = net(classes=classes)
        x, y = data(model, 20)
        report = evaluate(model, x, y, eps=0.2, attacks=["apgd-ce", name, "square"])
        assert report.robust_accuracy < 1
        with pytest.raises(
            ValueError, match=f"of {classes} classes, expected at least 4 for attack 'apgd-t'"
        ) as raised:
            evaluate(model, x, y, eps=0.2, attacks="quick")
        advice = re.search(r"for two or three: attacks=(\[.+\])", str(raised.value))
        assert advice
        assert evaluate(model, x, y, eps=0.2, attacks=ast.literal_eval(advice[1])).robust_accuracy < 1


def test_the_model_is_left_as_it_was_and_libraries_do_not_matter() -> None:
    model = user_model()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        module.training = False
    y = model(x).argmax(1)
    model = user_model()
    before = snapshot(model)
    report = evaluate(model, x, y, eps=0.02)
    assert snapshot(model) == before
    host = evaluate(model, x.numpy(), y.numpy(), eps=0.02)
    assert isinstance(host.x_adv, np.ndarray)
    assert isinstance(host.x_adv_at(), np.ndarray)
    assert bits(host.x_adv) == bits(report.x_adv)
    last = evaluate(model, x.to(memory_format=torch.channels_last), y.int(), eps=0.02)
    assert bits(last.x_adv) == bits(report.x_adv)
    with torch.no_grad():
        one = evaluate(model, x[:1], y[:1], eps=0.02)
    assert one.x_adv.shape == (1, 1, 8, 8)


def test_rows_are_counted_for_who_asks() -> None:
    model, x, y = case(10)
    with counting() as outer:
        with counting() as inner:
            adversarial.pgd(model, x, y, eps=0.1, steps=3)
        adversarial.pgd(model, x, y, eps=0.1, steps=1)
    adversarial.pgd(model, x, y, eps=0.1, steps=3)
    assert (inner.forward, inner.gradient) == (30, 30)
    assert (outer.forward, outer.gradient) == (40, 40)


# ------------------------------------------------------------------------------------------------ wrong use

MODELS = [case_ for case_ in WRONG if set(case_[1]) <= {"model", "x", "y"} and case_[0] != "meta logits"]


@pytest.mark.parametrize(("what", "changes", "error", "message"), MODELS, ids=[case_[0] for case_ in MODELS])
def test_wrong_models_and_samples(what, changes, error, message) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, "attacks": "apgd-ce", **changes}
    if what in ("detached", "no input"):  # found by the first gradient, so somebody is to be attacked
        options["y"] = options["model"](X).argmax(1)
    with pytest.raises(error, match=message):
        evaluate(**options)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": 0}, ValueError, "^eps is 0.0, expected a number above 0"),
    ({"eps": []}, ValueError, "^eps is empty"),
    ({"eps": [0.1, -1]}, ValueError, "^eps is -1.0"),
    ({"eps": "0.1"}, TypeError, "^eps is a str"),
    ({"norm": "l7"}, ValueError, "^norm is 'l7'"),
    ({"attacks": "best"}, ValueError, "^attacks names 'best', expected one of 'standard', 'rand'"),
    ({"attacks": ["apgd-ce", "pgd"]}, ValueError, "^attacks names 'pgd'"),
    ({"attacks": []}, TypeError, r"^attacks is \[\]"),
    ({"attacks": 3}, TypeError, "^attacks is 3"),
    ({"attacks": "quick"}, ValueError, "3 classes, expected at least 4 for attack 'apgd-t'"),
    ({"batch_size": 0}, ValueError, "^batch_size is 0"),
    ({"masking_checks": "some"}, ValueError, "^masking_checks is 'some'"),
    ({"seed": -1}, ValueError, "^seed is -1"),
    ({"progress": 3}, TypeError, "^progress is an int"),
    ({"x": X[:0], "y": Y[:0]}, ValueError, r"^x has shape \(0, 6\), expected at least one sample"),
    ({"clip": 3}, TypeError, "^clip is 3"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_wrong_arguments(changes, error, message) -> None:
    before = snapshot(FINE)
    with pytest.raises(error, match=message):
        evaluate(**{"model": FINE, "x": X, "y": Y, "eps": 0.1, "attacks": "apgd-ce", **changes})
    assert snapshot(FINE) == before


def test_nan_logits_are_named() -> None:
    model = Returns(lambda z: z * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits for 4 of 4 samples after 0 steps"):
        evaluate(model, X, Y, eps=0.1, attacks="apgd-ce")


ALTERED: list[tuple[dict[str, Any], str]] = [
    ({"stages": 3}, "stages is an int, expected a list"),
    ({"stages": [{"eps": 0.1}]}, "missing 2 required positional arguments: 'attack' and 'samples'"),
    ({"notes": {"apgd-ce": {"no": 1}}}, "unexpected keyword argument 'no'"),
    ({"parts_done": None}, "parts_done is a NoneType, expected an int"),
    ({"bound_to": None}, "bound_to is a NoneType, expected a str"),
    ({"fooled_at": np.zeros(3)}, r"fooled_at has shape \(3,\), expected \(4,\)"),
]


@pytest.mark.parametrize(("change", "match"), ALTERED)
def test_altered_checkpoints_name_the_field(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    options: dict[str, Any] = {"eps": 0.1, "attacks": "apgd-ce", "seed": 0, "checkpoint": path}
    model = Returns(lambda z: z)
    evaluate(model, X, Y, **options)
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(arrays["about"].tobytes())
    for name, value in change.items():
        if name in arrays:
            arrays[name] = value
        else:
            about[name] = value
    np.savez(path, **{**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    with pytest.raises(ValueError, match=f"is not a whole checkpoint of an evaluation: .*{match}"):
        evaluate(model, X, Y, **options)


def test_states_are_plain_files(tmp_path: Path) -> None:
    """Nothing in a checkpoint is ever unpickled."""
    path = tmp_path / "state.npz"
    np.savez(path, about=np.array([{}], dtype=object), fooled_at=0, fooled_by=0, open=0, fooled=0, adv=0)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        _state.Checkpoint(path).seed()
