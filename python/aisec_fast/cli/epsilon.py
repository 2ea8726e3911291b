"""``aisec-fast epsilon``: what a DP-SGD run costs, or how much noise a budget asks for."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from typing import Any

from aisec_fast import accounting

from ._output import CommandError, say, write_json

HELP = "epsilon of a DP-SGD run, or the noise multiplier that a target epsilon needs"
DESCRIPTION = """\
Privacy cost of DP-SGD with Poisson sampling, by dp-accounting. Neighbouring data sets differ by one record replaced by
a zero contribution; epsilon is the same number as when a record is added or removed."""
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
    parser.add_argument(
        "--sample-rate", type=_number, required=True, metavar="Q", help="batch size / data set size: 0.01 or 256/60000"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="number of optimizer steps")
    length.add_argument("--epochs", type=float, metavar="N", help="passes over the data, 1 / sample rate steps each")
    parser.add_argument("--delta", type=float, required=True, metavar="D", help="well below 1 / data set size")
    parser.add_argument("--accountant", default="pld", choices=("pld", "rdp"), help="pld (tight, default) or rdp")


def run(arguments: argparse.Namespace) -> None:
    """Answer the question that was asked."""
    try:
        result = _answer(arguments)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        write_json(result, arguments.json)
    if arguments.json != "-":
        say(_text(result))


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    rate, delta, accountant = arguments.sample_rate, arguments.delta, arguments.accountant
    steps = arguments.steps if arguments.epochs is None else steps_of(arguments.epochs, rate)
    noise_multiplier = arguments.noise_multiplier
    if noise_multiplier is None:
        noise_multiplier = accounting.get_noise_multiplier(
            target_epsilon=arguments.target_epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant=accountant,
        )
    epsilon = accounting.get_epsilon(
        noise_multiplier=noise_multiplier, sample_rate=rate, steps=steps, delta=delta, accountant=accountant
    )
    return {
        "epsilon": epsilon if math.isfinite(epsilon) else None,  # None: no noise, no privacy
        "delta": delta,
        "noise_multiplier": noise_multiplier,
        "sample_rate": rate,
        "steps": steps,
        "accountant": accountant,
    }


def _text(result: dict[str, Any]) -> str:
    epsilon = "infinite (no noise)" if result["epsilon"] is None else f"{result['epsilon']:.4g}"
    return (
        f"epsilon           {epsilon} at delta {result['delta']:g}\n"
        f"noise multiplier  {result['noise_multiplier']:.6g}\n"
        f"run               {result['steps']} steps at sample rate {result['sample_rate']:.6g} "
        f"(accountant {result['accountant']})"
    )


def steps_of(epochs: float, sample_rate: float) -> int:
    """Number of steps of so many passes, rounded up; a rounding error of the division does not add one."""
    if not (math.isfinite(epochs) and epochs > 0 and math.isfinite(sample_rate) and sample_rate > 0):
        raise ValueError(f"epochs is {epochs} and sample rate {sample_rate}, expected numbers above 0")
    exact = epochs / sample_rate
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-9) else math.ceil(exact)


def _number(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number, expected 0.01 or 256/60000") from None
