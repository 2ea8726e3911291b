"""``aisec-fast audit``: train privately once, with canaries, and see whether more leaks than is claimed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._output import CommandError, check_json, require, say, write_json

if TYPE_CHECKING:
    from ..audit import AuditReport, GradientCanaries

HELP = "audit a private training in one run: a lower bound on its epsilon"
DESCRIPTION = """\
Trains a small convolutional network on scikit-learn's handwritten digits privately, with canaries among the records: samples
with a gradient of one coordinate, of which a secret coin decides whether they take part. From the releases the coins are
guessed, and from the right guesses follows a lower bound on epsilon (Steinke, Nasr, Jagielski 2023; docs/audit.md). A bound
above the claim refutes it; a bound below proves nothing. To audit a training of your own: aisec_fast.audit.one_run."""
EPILOG = """\
examples:
  aisec-fast audit
  aisec-fast audit --target-epsilon 8 --canaries 4000
  aisec-fast audit --json audit.json

exit codes: 0 the claim is not contradicted, 1 it is refuted, 2 could not audit, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--target-epsilon", type=float, default=3.0, metavar="E", help="of the training; default: 3")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="passes over the data; default: 10")
    parser.add_argument("--canaries", type=int, default=3000, metavar="N", help="number of canaries; default: 3000")
    parser.add_argument("--guesses", type=int, metavar="N", help="canaries to guess; default: one in five")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the bound; default: 0.95")


def run(arguments: argparse.Namespace) -> int:
    """Train, guess, give the verdict, and say it with the exit code as well."""
    check_json(arguments.json)
    require(("torch", "dp_accounting", "sklearn", "rich"), "demo", "the audit")
    try:
        report = _report(arguments)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        result = dataclasses.asdict(report)
        result["claimed"] = report.claimed if math.isfinite(report.claimed) else None
        write_json({**result, "epochs": arguments.epochs}, arguments.json)
    if arguments.json != "-":
        say(str(report))
    return 0 if report.passed else 1


def _report(arguments: argparse.Namespace) -> AuditReport:
    import torch

    from aisec_fast import audit

    from .demo import training

    def train(attach: Callable[[torch.optim.Optimizer], GradientCanaries]) -> None:
        private, _ = training.private_run(training.load(), arguments.target_epsilon, arguments.epochs)
        attach(private.optimizer)
        with _bar(arguments.epochs) as advance:
            for _ in range(arguments.epochs):
                private.epoch()
                advance()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.SEED)
        return audit.one_run(
            train,
            delta=training.DELTA,
            canaries=arguments.canaries,
            guesses=arguments.guesses,
            confidence=arguments.confidence,
        )


@contextlib.contextmanager
def _bar(epochs: int) -> Iterator[Callable[[], Any]]:
    """A bar on standard error while the training runs, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    off = console.is_dumb_terminal or not (sys.stderr and sys.stderr.isatty())
    columns = TextColumn("training with canaries, epoch"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda: bar.advance(task)
