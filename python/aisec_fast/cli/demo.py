"""``aisec-fast demo``: a real model trained plainly and privately, side by side, and how fast the kernels are."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aisec_fast

from . import throughput
from ._output import check_destination, require, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from aisec_fast.privacy import PrivacyEngine

    from .training import Digits, Run

HELP = "train a real model privately and see what it costs"
DESCRIPTION = """\
Trains a small convolutional network on scikit-learn's handwritten digits (real scans, nothing is downloaded), plainly and
with differential privacy, side by side; then times every kernel on every backend beside what memory allows. Writes
demo.json to the current folder. Every figure is computed in this run. About half a minute on two cores."""
EPILOG = """\
examples:
  aisec-fast demo
  aisec-fast demo --quick                fewer epochs, small arrays
  aisec-fast demo --json results.json    another file; without a name: standard output, and no file
"""
EPSILON = 3.0
_BUSY = 0.5  # load by other programs, per core, from which the times are marked


class _Plan:
    """How long each part takes."""

    def __init__(self, quick: bool) -> None:
        self.epochs = 10 if quick else 40
        self.step_rounds = 10 if quick else 40
        self.kernel_rounds = 5 if quick else 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--quick", action="store_true", help="fewer epochs and small arrays, for a first look")


def run(arguments: argparse.Namespace) -> None:
    """Train, measure, tell, write."""
    start, load = time.perf_counter(), os.getloadavg()[0]
    destination = arguments.json or "demo.json"
    if destination != "-":
        check_destination(Path(destination))
    require(("torch", "dp_accounting", "sklearn", "rich"), "demo", "the demo")
    import torch
    from rich.console import Console

    # What a program reads from standard output must hold nothing else.
    console = Console(stderr=destination == "-", highlight=False, soft_wrap=True)
    plan = _Plan(arguments.quick)
    with torch.random.fork_rng(devices=[]):
        from . import training

        torch.manual_seed(training.SEED)
        result = _training(console, plan)
    result["throughput"] = _kernels(console, plan, quick=arguments.quick)
    result["versions"], result["machine"] = _versions(), {**_machine(), "load": load}
    result["quick"] = arguments.quick
    result["seconds"] = time.perf_counter() - start
    write_json(result, destination)
    _farewell(console, result, destination)


# --- Training ---------------------------------------------------------------------------------------------------------


def _training(console: Console, plan: _Plan) -> dict[str, Any]:
    from . import training

    digits = training.load()
    console.print("[bold]1. The same network twice, on handwritten digits[/]")
    console.print(f"{len(digits.train):,} scans to train on, {len(digits.test_labels)} to test")
    with _busy(console, f"finding the least noise for epsilon {EPSILON:g} in {plan.epochs} epochs"):
        plain = training.plain_run(digits)
        private, engine = training.private_run(digits, EPSILON, plan.epochs)
    # The same start for both: what differs at the end is what privacy costs.
    private.model.load_state_dict(plain.model.state_dict())
    console.print(
        f"noise multiplier {engine.noise_multiplier:.3f}, gradients clipped to {training.MAX_GRAD_NORM:g}, "
        f"Poisson batches of {len(digits.train) / len(private.loader):.0f} on average\n"
    )
    _watch(console, digits, plain, private, engine, plan.epochs)
    console.print("\n[dim]no loss is shown for the private run: a loss on training data is itself private[/]\n")
    _show_digits(console, digits, plain, private)
    with _busy(console, "timing a private step against a plain one, in turns"):
        ratio = training.step_time_ratio(digits, engine.noise_multiplier or 0.0, plan.step_rounds)
    return {
        "epsilon": engine.get_epsilon(training.DELTA),
        "delta": training.DELTA,
        "noise_multiplier": engine.noise_multiplier,
        "epochs": plan.epochs,
        "accuracy": {"plain": plain.accuracy(digits), "private": private.accuracy(digits)},
        "step_time_ratio": ratio,
    }


def _watch(console: Console, digits: Digits, plain: Run, private: Run, engine: PrivacyEngine, epochs: int) -> None:
    """Train with two bars on a terminal, with a few plain lines elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from . import training

    live = _is_live(console)
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
    with Progress(*columns, console=console, disable=not live) as progress:
        bars = [
            progress.add_task(name, total=epochs, accuracy=0.0, other="", step=0.0) for name in ("plain", "private")
        ]
        for epoch in training.train(plain, private, epochs):
            accuracies = plain.accuracy(digits), private.accuracy(digits)
            progress.update(
                bars[0], completed=epoch, accuracy=accuracies[0], other=f"loss {plain.loss:8.3f}", step=plain.step_ms
            )
            progress.update(bars[1], completed=epoch, accuracy=accuracies[1], step=private.step_ms)
            if epoch % every == 0 or epoch == epochs:
                epsilon = engine.get_epsilon(training.DELTA)
                progress.update(bars[1], other=f"epsilon {epsilon:5.3f}")
                if not live:
                    console.print(
                        f"epoch {epoch:>2}/{epochs}   plain: accuracy {accuracies[0]:6.1%}, loss {plain.loss:.3f}"
                        f"   private: accuracy {accuracies[1]:6.1%}, epsilon {epsilon:.3f}"
                    )


def _show_digits(console: Console, digits: Digits, plain: Run, private: Run) -> None:
    """A few test images as text, with what both models say: one that the private model gets wrong, the rest in order."""
    count = 5
    said = private.predict(digits.test_images)
    wrong = (said != digits.test_labels).nonzero().flatten().tolist()[:1]
    chosen = ([i for i in range(count + 1) if i not in wrong])[: count - len(wrong)] + wrong
    shades = " ░▒▓█" if "utf" in console.encoding.lower() else " .:*#"
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


# --- Kernels ----------------------------------------------------------------------------------------------------------


def _kernels(console: Console, plan: _Plan, *, quick: bool) -> list[dict[str, Any]]:
    console.print("[bold]2. The kernels beside what memory allows[/]")
    console.print(
        f"float32 (hashing: bytes), {aisec_fast.get_num_threads()} threads, median of {plan.kernel_rounds} interleaved rounds\n"
        "100 % of floor: a loop that does nothing but read (noise: read and write) the values\n"
    )
    rows = []
    table = _table()
    for case in throughput.cases(quick=quick):
        with _busy(console, f"measuring {case.operation} (Numba compiles its kernels once)"):
            results = throughput.measure(case, plan.kernel_rounds)
        shape = " x ".join(f"{extent:,}" for extent in case.shape)
        for position, result in enumerate(results):
            contender = result.contender
            table.add_row(
                f"[bold]{case.operation}[/]" if position == 0 else f"[dim]{shape}[/]" if position == 1 else "",
                contender.label,
                f"{result.ns:.3f}",
                f"{result.gb_per_s:.1f}",
                f"{result.floor_ns:.3f}",
                f"{result.percent_of_floor:.0f} %",
                end_section=position == len(results) - 1,
            )
        rows += [result.row() for result in results]
    console.print(table)
    console.print("[dim]* not private-safe: floating-point noise from a generator that can be predicted[/]\n")
    return rows


def _table() -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for heading in ("ns/value", "GB/s", "floor ns", "% of floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


# --- The end ----------------------------------------------------------------------------------------------------------


def _farewell(console: Console, result: dict[str, Any], destination: str) -> None:
    accuracy = result["accuracy"]
    console.print("[bold]3. What it cost[/]")
    console.print(
        f"  accuracy         plain [bold]{accuracy['plain']:.1%}[/], private [bold]{accuracy['private']:.1%}[/]"
    )
    console.print(
        f"  privacy          epsilon [bold]{result['epsilon']:.2f}[/] at delta {result['delta']:g} "
        f"(noise multiplier {result['noise_multiplier']:.2f})"
    )
    console.print(
        f"  step time        private / plain = [bold]{result['step_time_ratio']:.2f}[/], data loading left out"
    )
    console.print(f"  this demo took   {result['seconds']:.0f} s")
    if result["machine"]["load"] > _BUSY * result["machine"]["cores"]:
        console.print("  [yellow]other programs kept this machine busy: the times above are too long[/]")
    console.print(
        "\n[dim]What epsilon covers: the training run, by dp-accounting, for one record replaced by a zero contribution. It\n"
        "ignores the float32 rounding of the sum over samples in this release. Rounding to the noise lattice is paid for.\n"
        "The learning rate and the like were picked beforehand on these digits; epsilon does not count that.[/]"
    )
    console.print("\n[bold]Your own model[/] (pip install 'aisec_fast\\[privacy]'):\n")
    console.print(_LOOP, markup=False)
    console.print("[bold]What to try next[/]")
    console.print("  aisec-fast info             what this machine can run")
    console.print("  aisec-fast epsilon --help   what a run of yours would cost, or the noise for a budget")
    console.print("  docs/noise.md, docs/clipping.md, docs/hashing.md: what the kernels promise, and why it holds")
    if destination != "-":
        console.print(f"  {destination}: every figure above")


_LOOP = """\
    from aisec_fast.privacy import PrivacyEngine

    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model, optimizer=optimizer, data_loader=loader,
        target_epsilon=3.0, target_delta=1e-5, epochs=10, max_grad_norm=1.0)
    for _ in range(10):
        for x, y in loader:                 # your loop stays as it is
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
    print(engine.get_epsilon(delta=1e-5))
"""


def _is_live(console: Console) -> bool:
    return console.file.isatty() and not console.is_dumb_terminal


@contextlib.contextmanager
def _busy(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal; elsewhere nothing."""
    if not _is_live(console):
        yield
        return
    with console.status(f"[dim]{what}[/]"):
        yield


def _versions() -> dict[str, str]:
    names = ("aisec_fast", "numpy", "numba", "torch", "dp-accounting", "scikit-learn", "rich")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _machine() -> dict[str, Any]:
    found = aisec_fast.info()
    keys = ("instruction_sets", "instruction_set", "threads", "cuda")
    return {**found["machine"], **{key: found[key] for key in keys}}
