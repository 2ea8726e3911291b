"""A demo result as ``aisec-fast demo`` writes it, small and made up, with names that try to break out of the page."""

from __future__ import annotations

import math
import random
from typing import Any

EVIL = 'model"><img src=x onerror=alert(1)></script><script>alert(2)</script>.pt'

_DRAWN = {
    3: ["..8ff8..", ".8f44f8.", ".....f8.", "...8ff..", ".....f8.", ".2...4f.", ".8f44f8.", "..8ff8.."],
    7: [".ffffff.", ".8888ff.", ".....f8.", "....4f..", "....f8..", "...4f...", "...f8...", "...f4..."],
    4: ["....ff..", "...8ff..", "..8f8f..", ".8f.8f..", ".ffffff.", ".....f..", "....8f..", "....8f.."],
}


def sample(name: str = "model.pt") -> dict[str, Any]:
    """The result; ``name`` is the tampered file."""
    epochs = list(range(1, 41))
    plain = [1 - 0.9 * math.exp(-epoch / 4) - 0.02 for epoch in epochs]
    private = [0.955 - 0.85 * math.exp(-epoch / 7) + 0.006 * math.sin(3 * epoch) for epoch in epochs]
    sizes = ("0.0", "0.05", "0.1", "0.15", "0.2", "0.3")
    return {
        "epsilon": 2.9998,
        "delta": 1e-05,
        "noise_multiplier": 5.2126,
        "epochs": 40,
        "accuracy": {"plain": 0.9806, "private": 0.9556},
        "step_time_ratio": 2.1846,
        "seconds": 41.3,
        "date": "2026-11-25",
        "command": "aisec-fast demo",
        "quick": False,
        "training": {
            "epoch": epochs,
            "plain": {"accuracy": plain, "loss": [2.3 * math.exp(-epoch / 5) + 0.01 for epoch in epochs]},
            "private": {"accuracy": private},
            "epsilon": {"epoch": epochs[3::4], "value": [3 * math.sqrt(epoch / 40) for epoch in epochs[3::4]]},
        },
        "robust_accuracy": {
            "plain": dict(zip(sizes, (0.981, 0.86, 0.61, 0.33, 0.12, 0.01), strict=True)),
            "private": dict(zip(sizes, (0.956, 0.87, 0.72, 0.52, 0.31, 0.06), strict=True)),
        },
        "attack": {"name": "pgd", "norm": "linf", "steps": 40, "restarts": 2, "samples": 360},
        "digits": [_digit(3, 8, 3), _digit(7, 9, 9), _digit(4, 4, 9)],
        "manifest": {"verified": True, "tampered_file": name, "files": 4, "algorithm": "sha256", "root": "3b7e" * 16},
        "throughput": _throughput(),
        "versions": {"python": "3.11.7", "aisec_fast": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0+cpu"},
        "machine": {
            "system": "Linux",
            "processor": "x86_64",
            "cores": 2,
            "instruction_sets": ["avx2", "baseline"],
            "instruction_set": "avx2",
            "threads": 2,
            "cuda": {"devices": 0, "runtime": 13000, "driver": 0},
            "load": 0.21,
        },
    }


def _digit(label: int, plain: int, private: int) -> dict[str, Any]:
    generator = random.Random(label)
    original = [[0.0 if one == "." else int(one, 16) / 15 for one in row] for row in _DRAWN[label]]
    adversarial = [[min(1.0, max(0.0, p + generator.choice((-0.2, 0.0, 0.2)))) for p in row] for row in original]
    return {
        "label": label,
        "original": original,
        "adversarial": adversarial,
        "plain": plain,
        "private": private,
        "eps": 0.2,
    }


def _throughput() -> list[dict[str, Any]]:
    cases = {
        ("noise", "add_gaussian", (4194304,), 8, 0.165): (5.7, 12.1, 7.0, 5.0, 11.6),
        ("clipping", "clip_and_sum", (256, 100000), 4, 0.2): (0.425, 0.53, 0.79, 0.526, 0.423),
        ("clipping", "private_sum", (256, 100000), 4, 0.162): (0.865, 1.38, 1.47, 0.518, 0.48),
        ("hashing", "blake3", (67108864,), 1, 0.034): (0.19, 0.61, 1.33, None, None),
        ("adversarial", "linf_step", (256, 3072), 16, 0.66): (0.78, 0.9, 1.4, 3.1, 4.2),
    }
    backends = (("native", "avx2"), ("native", "baseline"), ("numba", None), ("torch", None), ("numpy", None))
    return [
        {
            "family": family,
            "operation": operation,
            "shape": list(shape),
            "dtype": "float32",
            "backend": backend,
            "instruction_set": instruction_set,
            "threads": 2,
            "private_safe": backend in ("native", "numba") or operation in ("clip_and_sum", "linf_step"),
            "ns": ns,
            "quartiles": [0.95 * ns, 1.1 * ns],
            "floor_ns": floor,
            "gb_per_s": size / ns,
            "percent_of_floor": 100 * floor / ns,
        }
        for (family, operation, shape, size, floor), times in cases.items()
        for (backend, instruction_set), ns in zip(backends, times, strict=True)
        if ns is not None
    ]
