"""Where the time of a private step goes beside the plain step of the same model on the same batch.

    python benchmarks/evidence/private_step.py                        all four models, 2 threads and 1: two minutes
    python benchmarks/evidence/private_step.py --models cnn --threads 2 --rounds 40

Rounds are interleaved in one process: plain, private, and private with ``PrivacyEngine(layers="torch")``, in turn; a ratio is
that of the medians. "parts" are milliseconds of
the private step by our own clocks, means over the rounds: norms taken in the backward pass (and, of those, our kernels),
clipped sums (and, of those, products in torch), noise and update. What the plain step's backward does and a private one need
not, the sums over the batch, is inside the plain step's time: so the parts do not add up to the difference. "extra" does:
forward, backward without norms, and all from the norms on, each less the plain step's, where a plain step has its sums in
the backward pass.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import record
import torch

import aisec_fast
from aisec_fast import clipping, ghost
from aisec_fast.cli.bench import _models, _training
from aisec_fast.privacy import PrivacyEngine, _layers, _recording, _step

PHASES = ("zero_grad", "forward", "backward", "step")
CLOCKED = (  # (what, owner, function), of which outer ones contain inner ones
    ("norms", _recording.Recorder, "measure"),
    ("norms: Gram matrices", _layers.LinearGradients, "_gram_norms"),
    ("norms: conv_rows", _layers.ConvGradients, "_native_rows"),
    ("norms: conv_gram_squares", ghost, "conv_gram_squares"),
    ("norms: row norms", clipping, "_row_norms"),
    ("norms: normalisations", _layers.GroupNormGradients, "_rows"),
    ("norms: normalisations", _layers.LayerNormGradients, "_rows"),
    ("sums", _step.Sums, "add"),
    ("sums: products of linear layers", _step, "add_products"),
    ("sums: products of convolutions", _layers.ConvGradients, "_add_product"),
    ("sums: kept rows", _step, "add_rows"),
    ("noise and update", _step.PrivateStep, "_release"),
)


def clock(times: Counter[str], what: str, owner: Any, name: str) -> None:
    """Add the time of every call of a function to ``times``."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            times[what] += time.perf_counter() - start

    setattr(owner, name, timed)


def stepper(model: str, layers: str | None) -> Callable[[], list[float]]:
    """A step that returns the time of each of PHASES; a private one with ``layers``."""
    bench = _models.training(model)
    arguments = _training._arguments(bench, _training._MULTIPLIER)
    optimizer = arguments["optimizer"]
    if layers is not None:
        _, optimizer, _ = PrivacyEngine(layers=layers).make_private(**arguments)

    def step() -> list[float]:
        marks = [time.perf_counter()]
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        loss = bench.loss(bench.x, bench.y)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]

    return step


def profile(model: str, rounds: int, times: Counter[str]) -> dict[str, Any]:
    steps = [stepper(model, layers) for layers in (None, "fast", "torch")]
    for step in steps * 3:
        step()
    times.clear()
    gc.collect()
    gc.disable()
    took, seconds = [], Counter[str]()
    for _ in range(rounds):
        one = [step() for step in steps[:2]]
        seconds = times.copy()  # of private steps with fast layers alone
        took.append((*one, steps[2]()))
        times.clear()
        times.update(seconds)
    gc.enable()
    whole = [statistics.median(sum(each[i]) for each in took) * 1e3 for i in range(3)]
    phases = [
        {name: round(statistics.median(pair[i][p] for pair in took) * 1e3, 3) for p, name in enumerate(PHASES)}
        for i in (0, 1)
    ]
    parts = {what: round(seconds[what] / rounds * 1e3, 3) for what, *_ in CLOCKED if seconds[what]}
    before, after = phases
    norms = parts["norms"]
    extra = {
        "forward": after["forward"] - before["forward"],
        "norms": norms,
        "backward with sums": after["backward"] - norms + parts["sums"] - before["backward"],
        "noise and update": after["step"] - parts["sums"] - before["step"] + after["zero_grad"] - before["zero_grad"],
    }
    return {
        "ratio": round(whole[1] / whole[0], 3),
        "ratio_with_torchs_layers": round(whole[2] / whole[0], 3),
        "plain_ms": round(whole[0], 2),
        "private_ms": round(whole[1], 2),
        "plain": before,
        "private": after,
        "parts_ms": parts,
        "extra_ms": {name: round(value, 2) for name, value in extra.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(_training.BATCHES), choices=list(_training.BATCHES))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=0, help="of each model; default: 60, of the large ones 12")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the batch is not the loader's
    times: Counter[str] = Counter()
    for what, owner, name in CLOCKED:
        clock(times, what, owner, name)
    start, found = time.perf_counter(), {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        aisec_fast.set_num_threads(threads)
        for model in options.models:
            rounds = options.rounds or (60 if model in ("mlp", "cnn") else 12)
            result = profile(model, rounds, times)
            found[f"{model}, {threads} threads"] = {"rounds": rounds, **result}
            print(
                f"{model}, {threads} threads: {result['ratio']:.3f}",
                f"({result['ratio_with_torchs_layers']:.3f})", result["extra_ms"], result["parts_ms"], flush=True,
            )  # fmt: skip
    print(record.write("private-step", {"steps": found}, time.perf_counter() - start))


if __name__ == "__main__":
    main()
