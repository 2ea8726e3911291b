"""Attacks on networks that were trained to resist them: time beside other implementations, and the same verdicts.

    python benchmarks/evidence/attacks.py               trains for some minutes the first time, then measures for some more
    python benchmarks/evidence/attacks.py --rounds 5

The networks of `aisec-fast bench` on scikit-learn's digits (28 x 28 grey for "cnn", 32 x 32 coloured for "resnet"), trained
adversarially for a few epochs with PGD of two steps; weights stay in the temporary folder. Contenders take turns; figures are
medians of the rounds. "pgd" and "pgd early_stop" find the working copy of the attack before, "alone" has to make it. "floor"
is steps x (forward + backward to the input) on the whole batch.

    python benchmarks/evidence/attacks.py --standard    AutoAttack's ensemble too, some minutes more
    python benchmarks/evidence/attacks.py --standard --rounds 0    the ensemble alone, in a file of its own

--standard: `evaluate(attacks="standard")` beside torchattacks' APGD, APGDT, FAB and Square with the same budgets, each on the
samples that those before it left, once. Rows give seconds and the number of samples that each attack was given and left.

"left" is the robust accuracy: the share of samples that the attack did not fool. "lost" counts samples that torchattacks'
last iterate fools and ours does not, with early_stop; it must be 0 (exit code 1).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from aisec_fast import adversarial
from aisec_fast.adversarial import _kept
from aisec_fast.cli.bench import _models

PLANS = {  # model: size of images, channels, epochs, radius of training, batch, steps, (radii)
    "cnn": (28, 1, 10, 0.1, 256, 40, (0.1, 0.15, 0.2)),
    "resnet": (32, 3, 3, 8 / 255, 64, 10, (8 / 255, 16 / 255)),
}


def digits(size: int, channels: int) -> tuple[Tensor, Tensor]:
    """The images in [0, 1] in an order that is always the same; coloured ones have ink and ground of random colours."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    x = functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    if channels == 3:
        ground = 0.35 * torch.rand(len(x), 3, 1, 1, generator=generator)
        ink = 0.65 + 0.35 * torch.rand(len(x), 3, 1, 1, generator=generator)
        x = (ground + (ink - ground) * x).clamp(0, 1)
    order = torch.randperm(len(x), generator=generator)
    return x[order], torch.tensor(labels)[order]


def trained(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in eval mode, and samples that it was not trained on."""
    size, channels, epochs, eps, batch, _, _ = PLANS[name]
    x, y = digits(size, channels)
    model = _models.attack(name).model
    file = Path(tempfile.gettempdir()) / f"aisec_fast_attacks_{name}_{torch.__version__}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file))
        return model.eval(), x[1200 : 1200 + batch], y[1200 : 1200 + batch]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(epochs):
        radius = eps * min(1.0, 2 * (epoch + 1) / epochs)
        for rows in torch.randperm(1200, generator=generator).split(64):
            adv = adversarial.pgd(model, x[rows], y[rows], eps=radius, steps=2, step_size=0.7 * radius, seed=epoch)
            optimizer.zero_grad()
            functional.cross_entropy(model.train()(adv), y[rows]).backward()
            optimizer.step()
    torch.save(model.state_dict(), file)
    return model.eval(), x[1200 : 1200 + batch], y[1200 : 1200 + batch]


def measured(name: str, rounds: int) -> list[dict[str, Any]]:
    model, x, y = trained(name)
    *_, steps, radii = PLANS[name]

    def floor() -> None:
        for _ in range(steps):
            point = x.detach().requires_grad_()
            torch.autograd.grad(functional.cross_entropy(model(point), y), point)

    found = []
    for eps in radii:
        length, options = eps / (steps / 4), {"steps": steps, "eps": eps, "random_start": False}

        def ours(early_stop: bool, length: float = length, options: dict[str, Any] = options) -> Tensor:
            return adversarial.pgd(model, x, y, step_size=length, early_stop=early_stop, **options)

        def theirs(length: float = length, options: dict[str, Any] = options) -> Tensor:
            return torchattacks.PGD(model, alpha=length, **options)(x, y)

        def alone(ours: Callable[[bool], Tensor] = ours) -> Tensor:
            _kept.forget(model)
            return ours(True)

        calls: dict[str, Callable[[], Any]] = {
            "floor": floor,
            "torchattacks": theirs,
            "pgd": lambda ours=ours: ours(False),
            "pgd early_stop": lambda ours=ours: ours(True),
            "pgd early_stop alone": alone,
        }
        seconds: dict[str, list[float]] = {call: [] for call in calls}
        results = {}
        for _ in range(rounds):
            for call, run in calls.items():
                start = time.perf_counter()
                results[call] = run()
                seconds[call].append(time.perf_counter() - start)
        with torch.no_grad():
            fooled = {call: model(adv).argmax(1) != y for call, adv in results.items() if adv is not None}
        found.append(
            {
                "model": name,
                "eps": eps,
                "steps": steps,
                "samples": len(x),
                "seconds": {call: round(statistics.median(times), 4) for call, times in seconds.items()},
                "left": {call: 1 - float(hit.double().mean()) for call, hit in fooled.items()},
                "lost": int((fooled["torchattacks"] & ~fooled["pgd early_stop"]).sum()),
            }
        )
        print(found[-1], flush=True)
    return found


def standard(samples: int, eps: float) -> dict[str, Any]:
    """The ensemble on the first samples of "cnn", one attack after the other, ours and theirs in turns."""
    model, x, y = trained("cnn")
    x, y = x[:samples].contiguous(), y[:samples]
    common: dict[str, Any] = {"norm": "Linf", "eps": eps, "n_restarts": 1}
    theirs = {
        "apgd-ce": torchattacks.APGD(model, steps=100, loss="ce", **common),
        "apgd-t": torchattacks.APGDT(model, steps=100, n_classes=10, **common),
        "fab-t": torchattacks.FAB(model, steps=100, n_classes=10, multi_targeted=True, **common),
        "square": torchattacks.Square(model, n_queries=5000, resc_schedule=False, **common),
    }
    with torch.no_grad():
        left = {"ours": model(x).argmax(1) == y, "torchattacks": model(x).argmax(1) == y}
    rows = []
    for name, attack in theirs.items():
        row: dict[str, Any] = {"attack": name}
        for who, alive in left.items():
            given = alive.nonzero()[:, 0]
            start = time.perf_counter()
            if who == "ours":
                only = adversarial.evaluate(
                    model, x[given], y[given], eps=eps, attacks=[name], seed=0, masking_checks="none"
                )
                adv = only.x_adv
            else:
                adv = attack(x[given], y[given])
            seconds = time.perf_counter() - start
            with torch.no_grad():
                alive[given] = model(adv).argmax(1) == y[given]
            row[who] = {"seconds": round(seconds, 3), "given": len(given), "left": int(alive.sum())}
        rows.append(row)
        print(row, flush=True)
    total = {who: sum(row[who]["seconds"] for row in rows) for who in left}
    return {
        "model": "cnn",
        "eps": eps,
        "samples": samples,
        "rows": rows,
        "ratio": total["torchattacks"] / total["ours"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--standard", action="store_true")
    parser.add_argument("--samples", type=int, default=64, help="of --standard")
    arguments = parser.parse_args()
    start = time.perf_counter()
    findings = [row for name in PLANS for row in measured(name, arguments.rounds)] if arguments.rounds else []
    document: dict[str, Any] = {"threads": torch.get_num_threads(), "rows": findings}
    if arguments.standard:
        document["standard"] = standard(arguments.samples, 0.1)
    path = record.write("attacks" if findings else "attacks-standard", document, time.perf_counter() - start)
    print(f"-- wrote {path}")
    return int(any(row["lost"] for row in findings))


if __name__ == "__main__":
    sys.exit(main())
