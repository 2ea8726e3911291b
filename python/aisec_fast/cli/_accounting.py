"""What ``epsilon`` and ``noise-multiplier`` share: the description of a run, and the answer."""

from __future__ import annotations

import argparse
import math
from typing import Any

from aisec_fast import accounting

from ._output import CommandError, say, write_json

NEIGHBOURS = """\
Neighbouring data sets differ by one record replaced by a zero contribution; epsilon is the same number as when a record is
added or removed."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments that describe a run and its accounting."""
    parser.add_argument(
        "--sample-rate", type=_number, required=True, metavar="Q", help="batch size / data set size: 0.01 or 256/60000"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="number of optimizer steps")
    length.add_argument("--epochs", type=float, metavar="N", help="passes over the data, 1 / sample rate steps each")
    parser.add_argument("--delta", type=float, required=True, metavar="D", help="well below 1 / data set size")
    parser.add_argument("--accountant", default="pld", choices=("pld", "rdp"), help="pld (tight, default) or rdp")


def answer(arguments: argparse.Namespace, noise_multiplier: float | None, target_epsilon: float | None) -> None:
    """Print or write what a run costs; the noise multiplier is the least for ``target_epsilon`` if it is None."""
    try:
        result = _result(arguments, noise_multiplier, target_epsilon)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        write_json(result, arguments.json)
    if arguments.json != "-":
        say(_text(result))


def _result(
    arguments: argparse.Namespace, noise_multiplier: float | None, target_epsilon: float | None
) -> dict[str, Any]:
    rate, delta, accountant = arguments.sample_rate, arguments.delta, arguments.accountant
    steps = arguments.steps if arguments.epochs is None else steps_of(arguments.epochs, rate)
    if noise_multiplier is None:
        assert target_epsilon is not None
        noise_multiplier = accounting.get_noise_multiplier(
            target_epsilon=target_epsilon,
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
    # Not by Fraction: it would write out 1e999999999 in full.
    numerator, slash, denominator = text.partition("/")
    try:
        number = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no number, expected 0.01 or 256/60000")
    return number
