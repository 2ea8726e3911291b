"""``aisec-fast noise-multiplier``: the least noise that keeps a DP-SGD run within a budget."""

from __future__ import annotations

import argparse

from ._accounting import NEIGHBOURS, add_run, answer

HELP = "the least noise multiplier that keeps a DP-SGD run within a budget"
DESCRIPTION = f"""\
The least noise multiplier, up to 0.01 %, with which a DP-SGD run with Poisson sampling stays within epsilon at delta, by
dp-accounting. {NEIGHBOURS}"""
EPILOG = """\
examples:
  aisec-fast noise-multiplier --target-epsilon 3 --sample-rate 256/60000 --epochs 10 --delta 1e-5
  aisec-fast noise-multiplier --target-epsilon 8 --sample-rate 0.01 --steps 1000 --delta 1e-6 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--target-epsilon", type=float, required=True, metavar="E", help="epsilon allowed, above 0")
    add_run(parser)


def run(arguments: argparse.Namespace) -> None:
    """Find it, and say what the run then costs."""
    answer(arguments, None, arguments.target_epsilon)
