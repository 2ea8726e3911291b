"""``aisec-fast epsilon``: what a DP-SGD run costs, or how much noise a budget asks for."""

from __future__ import annotations

import argparse

from ._accounting import NEIGHBOURS, add_run, answer

HELP = "epsilon of a DP-SGD run, or the noise multiplier that a target epsilon needs"
DESCRIPTION = f"Privacy cost of DP-SGD with Poisson sampling, by dp-accounting. {NEIGHBOURS}"
EPILOG = """\
examples:
  aisec-fast epsilon --noise-multiplier 1.1 --sample-rate 256/60000 --epochs 10 --delta 1e-5
  aisec-fast epsilon --target-epsilon 3     --sample-rate 256/60000 --epochs 10 --delta 1e-5
  aisec-fast epsilon --noise-multiplier 2 --sample-rate 0.01 --steps 1000 --delta 1e-6 --accountant rdp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument(
        "--noise-multiplier", type=float, metavar="Z", help="noise standard deviation / clipping norm: gives epsilon"
    )
    question.add_argument("--target-epsilon", type=float, metavar="E", help="gives the least noise multiplier for it")
    add_run(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer the question that was asked."""
    answer(arguments, arguments.noise_multiplier, arguments.target_epsilon)
