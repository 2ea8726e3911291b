"""``aisec-fast demo``: the whole story in one run. Train a real model privately, attack it, seal it, measure the kernels."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._writing import check_destination, write_whole
from .._output import console_for_tables, require, write_json
from ..bench._results import machine, versions

if TYPE_CHECKING:
    from rich.console import Console

HELP = "train a real model privately, attack it, seal it, and see what it costs"
DESCRIPTION = """\
Trains a small convolutional network on scikit-learn's handwritten digits (real scans, nothing is downloaded), plainly and
with differential privacy, side by side; attacks both with PGD; saves the private model with a manifest and shows that one
flipped bit is found; times every kernel on every backend beside what memory allows. Writes demo.json, report.html and the
folder demo-model to the current folder. Every figure is computed in this run. About two minutes on two cores."""
EPILOG = """\
examples:
  aisec-fast demo
  aisec-fast demo --quick                fewer epochs, weaker attacks, small arrays
  aisec-fast demo --json results.json    another file; without a name: standard output, and no file at all
"""
_BUSY = 0.5  # load by other programs, per core, from which the times are marked
_REPORT, _MODEL = Path("report.html"), Path("demo-model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--quick", action="store_true", help="fewer epochs and small arrays, for a first look")


def run(arguments: argparse.Namespace) -> int:
    """Train, attack, seal, measure, tell, write."""
    start, load = time.perf_counter(), os.getloadavg()[0]
    destination = arguments.json or "demo.json"
    files = destination != "-"
    if files:
        for path in (Path(destination), _REPORT):
            check_destination(path)
    require(("torch", "dp_accounting", "sklearn", "rich", "plotly", "jinja2"), "demo", "the demo")
    import torch

    from . import parts, seal, training

    if files:
        seal.check_folder(_MODEL)
    # What a program reads from standard output must hold nothing else.
    console = console_for_tables(stderr=not files, soft_wrap=True)
    plan = parts.Plan(quick=arguments.quick)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.SEED)
        result, models = parts.train(console, plan)
        attacked, digits = parts.attack(console, plan, models)
        result |= attacked
    result |= parts.seal(console, models, _card(result), _MODEL if files else None)
    result |= parts.measure(console, plan)
    result |= {
        "quick": arguments.quick,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(("numpy", "numba", "torch", "dp-accounting", "scikit-learn", "rich", "plotly")),
        "machine": {**machine(), "load": load},
        "seconds": time.perf_counter() - start,
    }
    if files:
        from ..report import demo_page

        write_whole(_REPORT, demo_page.build({**result, "digits": digits}))
    write_json(result, destination)
    _farewell(console, result, destination if files else None)
    return 0


def _card(result: dict[str, Any]) -> dict[str, Any]:
    """What somebody who loads the weights should know of them."""
    keys = ("epsilon", "delta", "noise_multiplier", "epochs", "accuracy", "robust_accuracy", "attack")
    return {
        "model": "aisec_fast.cli.demo.training.small_cnn",
        "data": "scikit-learn's handwritten digits",
        **{key: result[key]["private"] if key in ("accuracy", "robust_accuracy") else result[key] for key in keys},
    }


def _farewell(console: Console, result: dict[str, Any], destination: str | None) -> None:
    from ..report import demo_page

    accuracy = result["accuracy"]
    manifest = result["manifest"]
    console.print("[bold]What it cost[/]")
    console.print(
        f"  accuracy         plain [bold]{accuracy['plain']:.1%}[/], private [bold]{accuracy['private']:.1%}[/]"
    )
    console.print(
        f"  privacy          epsilon [bold]{result['epsilon']:.2f}[/] at delta {result['delta']:g} "
        f"(noise multiplier {result['noise_multiplier']:.2f})"
    )
    if attacked := demo_page.at_middle_eps(result):
        eps, plain, private = attacked
        console.print(f"  under attack     plain [bold]{plain:.1%}[/], private [bold]{private:.1%}[/] at eps {eps}")
    console.print(
        f"  seal             {'verified' if manifest['verified'] else 'NOT verified'}; "
        f"the flipped bit was found in {manifest['tampered_file'] or 'NO file'}"
    )
    console.print(
        f"  step time        private / plain = [bold]{result['step_time_ratio']:.2f}[/], data loading left out"
    )
    console.print(f"  this demo took   {result['seconds']:.0f} s")
    if result["machine"]["load"] > _BUSY * result["machine"]["cores"]:
        console.print("  [yellow]other programs kept this machine busy: the times above are too long[/]")
    for words in (demo_page.EPSILON_COVERS, _LIMITS):
        console.print(f"\n[dim]{textwrap.fill(words, 118)}[/]")
    console.print("\n[bold]Your own model[/] (pip install '.\\[privacy]' in a checkout of aisec_fast):\n")
    console.print(_LOOP, markup=False)
    console.print("[bold]What to try next[/]")
    if destination:
        console.print(f"  open {_REPORT}            the same with plots; {destination} has every figure")
        console.print(f"  aisec-fast verify {_MODEL} --manifest {_MODEL}/manifest.json")
    console.print("  aisec-fast info             what this machine can run")
    console.print("  aisec-fast epsilon --help   what a run of yours would cost, or the noise for a budget")
    console.print("  docs/: what the kernels promise, and why it holds")


_LIMITS = (
    "An attack shows an upper bound of robustness: a stronger one may find more. The manifest is not signed: whoever can "
    "change the files can change it too."
)
_LOOP = """\
    from aisec_fast import adversarial
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
    x_adv = adversarial.pgd(model, x, y, eps=8 / 255)
"""
