"""What the demo's four parts do and show, in order: train, attack, seal, measure. Each returns its share of the result."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import aisec_fast

from ..bench._cases import demo_cases
from ..bench._measure import measure as measured
from ..bench._show import label, shape_of
from . import attack as attacks
from . import seal as seals
from . import training

if TYPE_CHECKING:
    from aisec_fast.privacy import PrivacyEngine

EPSILON = 3.0
_BAR = 24  # characters of a bar at 100 %


class Plan:
    """How long each part takes."""

    def __init__(self, *, quick: bool) -> None:
        """``quick``: a first look."""
        self.quick = quick
        self.epochs = 10 if quick else 40
        self.step_rounds = 10 if quick else 40
        self.attack_steps = 10 if quick else 40
        self.attack_eps = (0.05, 0.1, 0.2) if quick else (0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2)
        self.kernel_rounds = 5 if quick else 15


@dataclass
class Models:
    """What the training leaves for the parts after it."""

    digits: training.Digits
    plain: training.Run
    private: training.Run


# --- Train ------------------------------------------------------------------------------------------------------------


def train(console: Console, plan: Plan) -> tuple[dict[str, Any], Models]:
    """Train the same network plainly and privately."""
    digits = training.load()
    console.print("[bold]1. Train: the same network twice, on handwritten digits[/]")
    console.print(f"{len(digits.train):,} scans to train on, {len(digits.test_labels)} to test")
    with busy(console, f"finding the least noise for epsilon {EPSILON:g} in {plan.epochs} epochs"):
        plain = training.plain_run(digits)
        private, engine = training.private_run(digits, EPSILON, plan.epochs)
    # The same start for both: what differs at the end is what privacy costs.
    private.model.load_state_dict(plain.model.state_dict())
    console.print(
        f"noise multiplier {engine.noise_multiplier:.3f}, gradients clipped to {training.MAX_GRAD_NORM:g}, "
        f"Poisson batches of {len(digits.train) / len(private.loader):.0f} on average\n"
    )
    curves = _watch(console, digits, plain, private, engine, plan.epochs)
    console.print("\n[dim]no loss is shown for the private run: a loss on training data is itself private[/]\n")
    _show_digits(console, digits, plain, private)
    with busy(console, "timing a private step against a plain one, in turns"):
        ratio = training.step_time_ratio(digits, engine.noise_multiplier or 0.0, plan.step_rounds)
    return {
        "epsilon": engine.get_epsilon(training.DELTA),
        "delta": training.DELTA,
        "noise_multiplier": engine.noise_multiplier,
        "epochs": plan.epochs,
        "accuracy": {"plain": plain.accuracy(digits), "private": private.accuracy(digits)},
        "step_time_ratio": ratio,
        "training": curves,
    }, Models(digits, plain, private)


def _watch(
    console: Console,
    digits: training.Digits,
    plain: training.Run,
    private: training.Run,
    engine: PrivacyEngine,
    epochs: int,
) -> dict[str, Any]:
    """Train with two bars on a terminal, with a few plain lines elsewhere; returns the curves."""
    live = is_live(console)
    columns = (
        TextColumn("[bold]{task.description:<8}"),
        BarColumn(bar_width=max(8, min(40, console.width - 66))),
        TextColumn("epoch"),
        MofNCompleteColumn(),
        TextColumn("accuracy [bold]{task.fields[accuracy]:6.1%}"),
        TextColumn("{task.fields[other]}"),
        TextColumn("[dim]{task.fields[step]:5.1f} ms/step"),
    )
    every = max(1, epochs // 10)  # epsilon takes a moment to compute
    curves: dict[str, Any] = {
        "epoch": [],
        "plain": {"accuracy": [], "loss": []},
        "private": {"accuracy": []},
        "epsilon": {"epoch": [], "value": []},
    }
    with Progress(*columns, console=console, disable=not live) as progress:
        bars = [
            progress.add_task(name, total=epochs, accuracy=0.0, other="", step=0.0) for name in ("plain", "private")
        ]
        for epoch in training.train(plain, private, epochs):
            accuracies = plain.accuracy(digits), private.accuracy(digits)
            curves["epoch"].append(epoch)
            curves["plain"]["accuracy"].append(accuracies[0])
            curves["plain"]["loss"].append(plain.loss)
            curves["private"]["accuracy"].append(accuracies[1])
            progress.update(
                bars[0], completed=epoch, accuracy=accuracies[0], other=f"loss {plain.loss:8.3f}", step=plain.step_ms
            )
            progress.update(bars[1], completed=epoch, accuracy=accuracies[1], step=private.step_ms)
            if epoch % every == 0 or epoch == epochs:
                epsilon = engine.get_epsilon(training.DELTA)
                curves["epsilon"]["epoch"].append(epoch)
                curves["epsilon"]["value"].append(epsilon)
                progress.update(bars[1], other=f"epsilon {epsilon:5.3f}")
                if not live:
                    console.print(
                        f"epoch {epoch:>2}/{epochs}   plain: accuracy {accuracies[0]:6.1%}, loss {plain.loss:.3f}"
                        f"   private: accuracy {accuracies[1]:6.1%}, epsilon {epsilon:.3f}"
                    )
    return curves


def _show_digits(console: Console, digits: training.Digits, plain: training.Run, private: training.Run) -> None:
    """A few test images as text, with what both models say: one that the private model gets wrong, the rest in order."""
    count = 5
    said = private.predict(digits.test_images)
    wrong = (said != digits.test_labels).nonzero().flatten().tolist()[:1]
    chosen = ([i for i in range(count + 1) if i not in wrong])[: count - len(wrong)] + wrong
    shades = " ░▒▓█" if _draws(console) else " .:*#"
    for row in range(8):
        pixels = (digits.test_images[i, 0, row].tolist() for i in chosen)
        console.print("  " + "   ".join("".join(2 * shades[round(4 * p)] for p in line) for line in pixels))
    for name, answers in (
        ("truth", digits.test_labels),
        ("plain", plain.predict(digits.test_images)),
        ("private", said),
    ):
        console.print("  " + "   ".join(f"{name + ' ' + str(int(answers[i])):<16}" for i in chosen).rstrip())
    console.print()


# --- Attack -----------------------------------------------------------------------------------------------------------


def attack(console: Console, plan: Plan, models: Models) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attack both models; returns the share of the result, and the worst digits for the page."""
    plain, private = (attacks.Attack(run, models.digits) for run in (models.plain, models.private))
    console.print("[bold]2. Attack: every pixel may change by up to eps[/]")
    console.print(
        f"PGD, {plan.attack_steps} steps, on the {len(models.digits.test_labels)} test scans (pixels from 0 to 1): "
        "what accuracy is left\n"
    )
    console.print(f"   eps   {'plain':<{_BAR + 8}} private")
    rounds = attacks.attack(plain, private, plan.attack_eps, plan.attack_steps)
    while True:
        with busy(console, "attacking"):
            eps = next(rounds, None)
        if eps is None:
            break
        bars = " ".join(_bar(console, one.robust_accuracy[eps]) for one in (plain, private))
        console.print(f"  {eps:4.2f}   {bars.rstrip()}")
    console.print()
    result = {
        "robust_accuracy": {
            "plain": {f"{eps:g}": share for eps, share in plain.robust_accuracy.items()},
            "private": {f"{eps:g}": share for eps, share in private.robust_accuracy.items()},
        },
        "attack": {
            "name": "pgd",
            "norm": attacks.NORM,
            "steps": plan.attack_steps,
            "restarts": 1,
            "samples": len(models.digits.test_labels),
        },
    }
    return result, attacks.worst_digits(plain, private, count=8)


def _bar(console: Console, share: float) -> str:
    full = round(_BAR * share)
    filled, empty = ("█", "░") if _draws(console) else ("#", ".")
    return f"[bold]{share:6.1%}[/] {filled * full}[dim]{empty * (_BAR - full)}[/]"


# --- Seal -------------------------------------------------------------------------------------------------------------


def seal(console: Console, models: Models, card: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Save the private model and its manifest, check it, and check a copy with one flipped bit.

    ``folder`` is where they stay; None: nowhere.
    """
    console.print("[bold]3. Seal: a manifest of the model's files[/]")
    # Beside the folder, so that moving it there is a rename; nothing half-written is ever seen.
    scratch = Path(tempfile.mkdtemp(dir=folder.parent if folder else None, prefix=".aisec-fast-demo-"))
    aside = scratch / (folder.name if folder else "demo-model")
    try:
        aside.mkdir()
        manifest = seals.save(models.private.model, card, aside)
        verified = seals.is_whole(aside)
        changed = seals.changed_after_tampering(aside)
        if folder:
            seals.publish(aside, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yes, no = ("✓", "✗") if _draws(console) else ("ok", "!!")
    verdict = f"[green]{yes} verified[/]" if verified else f"[red]{no} differs[/]"
    rows = (
        (
            f"{folder.name}/" if folder else "the model's folder",
            verdict,
            f"{len(manifest.digests)} files, SHA-256, OMS v1.0",
        ),
        (
            "a copy, one bit flipped",
            f"[red]{no} differs[/]" if changed else "[red]NOT FOUND[/]",
            f"changed: {', '.join(changed)}",
        ),
    )
    for what, found, details in rows:
        console.print(f"  {what:<24} {found}   {details}")
    console.print()
    return {
        "manifest": {
            "verified": verified,
            "tampered_file": changed[0] if changed else None,
            "files": len(manifest.digests),
            "algorithm": manifest.algorithm,
            "root": manifest.root_digest.hex(),
        }
    }


# --- Measure ----------------------------------------------------------------------------------------------------------


def measure(console: Console, plan: Plan) -> dict[str, Any]:
    """Time every kernel on every backend, at one size each, as ``aisec-fast bench`` does at many."""
    threads = aisec_fast.get_num_threads()
    console.print("[bold]4. Measure: the kernels beside what memory allows[/]")
    console.print(
        f"{threads} threads, median of {plan.kernel_rounds} interleaved rounds, each result compared with a reference first\n"
        "100 % of floor: a loop that does nothing but move the same memory\n"
    )
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("kernel", no_wrap=True)
    shown.add_column("backend", no_wrap=True)
    for heading in ("ns/value", "GB/s", "floor ns", "% of floor"):
        shown.add_column(heading, justify="right", no_wrap=True)
    rows: list[dict[str, Any]] = []
    for case in demo_cases(quick=plan.quick, threads=threads):
        with busy(console, f"measuring {case.operation} (Numba compiles its kernels once)"):
            found, _ = measured(case, plan.kernel_rounds, most_seconds=5.0)
        for position, row in enumerate(found):
            shown.add_row(
                f"[bold]{case.operation}[/]" if position == 0 else f"[dim]{shape_of(row)}[/]" if position == 1 else "",
                label(row),
                f"{row['ns']:.3f}",
                f"{row['gb_per_s']:.1f}",
                f"{row['floor_ns']:.3f}",
                f"{row['percent_of_floor']:.0f} %",
                end_section=position == len(found) - 1,
            )
        rows += found
    console.print(shown)
    console.print("[dim]* not private-safe: floating-point noise from a generator that can be predicted[/]\n")
    return {"throughput": rows}


# --- The screen -------------------------------------------------------------------------------------------------------


def is_live(console: Console) -> bool:
    """Whether somebody watches."""
    return console.file.isatty() and not console.is_dumb_terminal


@contextlib.contextmanager
def busy(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal; elsewhere nothing."""
    if not is_live(console):
        yield
        return
    with console.status(f"[dim]{what}[/]"):
        yield


def _draws(console: Console) -> bool:
    """Whether block characters arrive."""
    return "utf" in console.encoding.lower()
