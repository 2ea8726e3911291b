"""What an evaluation finds, as text, JSON and a page."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _backends
from .._writing import write_whole
from . import _rows
from ._masking import Finding
from ._state import Stage, digest

SCHEMA = "aisec_fast.adversarial.report/1"
_NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1", "l0": "L0"}


def versions() -> dict[str, str]:
    """Of this library and of what it computed with."""
    found = {"aisec_fast": _backends.version(), "python": platform.python_version(), "numpy": np.__version__}
    torch = sys.modules.get("torch")
    return found if torch is None else {**found, "torch": str(torch.__version__)}


@dataclass(frozen=True)
class Report:
    """Accuracy under attack. Verdicts and samples are in the order of ``x``.

    Attributes:
        norm: "linf", "l2" ...
        eps: the radii, ascending.
        clean_accuracy: share of samples that the model gets right without an attack.
        stages: what ran, in order: the clean pass, then each attack at each eps. Of each: ``attack``, ``eps``, ``samples`` it
            was given, ``newly_fooled``, ``robust_accuracy`` after it (a share of all samples), ``seconds``, and how many
            rows the model was given: ``forward_rows`` in all, ``gradient_rows`` of them with a backward pass. Functions
            that do not attack through this library are not counted in rows. ``differences``: how often a sample fooled the
            attack's working copy of the module and not the module itself, and so was attacked further.
        fooled_at: float64 ``[B]``: the smallest of ``eps`` at which the sample was fooled; 0 where the model was wrong
            already; NaN where it held.
        fooled_by: for each sample the attack that fooled it, or "".
        x_adv: like ``x``: the samples that fool the model (each inside the ball of its ``fooled_at``, so of every larger
            one), ``x`` itself elsewhere.
        warnings: signs of masked gradients, each with ``code`` and ``message``.
        unconfirmed: samples that an attack claimed and that did not fool the model in the last look at all of ``x_adv`` in
            batches of ``batch_size``: they hang on the last bit of a logit, and count as robust.
        seed: of everything random.
        settings: of the evaluation and each attack.
        versions: of the libraries.
        seconds: of the whole run (after an interruption: of its last part).
    """

    norm: str
    eps: tuple[float, ...]
    clean_accuracy: float
    stages: tuple[Stage, ...]
    fooled_at: npt.NDArray[np.float64]
    fooled_by: tuple[str, ...]
    x_adv: Any
    warnings: tuple[Finding, ...]
    unconfirmed: int
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    _x: Any = field(repr=False)

    @property
    def curve(self) -> dict[float, float]:
        """Robust accuracy at each eps."""
        return {eps: float(self.robust(eps).mean()) for eps in self.eps}

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that no attack fooled, at the largest eps."""
        return self.curve[self.eps[-1]]

    def robust(self, eps: float | None = None) -> npt.NDArray[np.bool_]:
        """Which samples held at one of the radii, by default the largest: ``[B]`` of bool."""
        radius = self._radius(eps)
        held: npt.NDArray[np.bool_] = ~(self.fooled_at <= radius)
        return held

    def x_adv_at(self, eps: float | None = None) -> Any:
        """A copy of ``x_adv`` for one of the radii: ``x`` where the sample was not fooled there."""
        radius = self._radius(eps)
        samples = _rows.copy(self._x)
        rows = np.flatnonzero((self.fooled_at > 0) & (self.fooled_at <= radius))
        _rows.put(samples, rows, _rows.take(self.x_adv, rows))
        return samples

    def _radius(self, eps: float | None) -> float:
        if eps is None:
            return self.eps[-1]
        if eps not in self.eps:
            raise ValueError(f"eps is {eps!r}, expected one of those evaluated: {', '.join(map(repr, self.eps))}")
        return float(eps)

    def __str__(self) -> str:
        """A plain table."""
        count = len(self.fooled_at)
        lines = [f"{_NORMS[self.norm]}, {count} samples, clean accuracy {self.clean_accuracy:.2%}", ""]
        heads = ("eps", "attack", "samples", "fooled", "robust", "seconds", "forward rows", "gradient rows")
        table = [heads, *(self._cells(stage) for stage in self.stages)]
        widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
        for row in table:
            cells = (
                cell.ljust(width) if i == 1 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(cells).rstrip())
        lines += ["", *(f"robust accuracy at eps {eps:g}: {share:.2%}" for eps, share in self.curve.items())]
        if self.unconfirmed:
            lines.append(
                f"{self.unconfirmed} samples were fooled by an attack but not in the last look; they count as robust"
            )
        lines += [f"warning ({finding.code}): {finding.message}" for finding in self.warnings]
        return "\n".join(lines)

    @staticmethod
    def _cells(stage: Stage) -> tuple[str, ...]:
        return (
            f"{stage.eps:g}", stage.attack, str(stage.samples), str(stage.newly_fooled), f"{stage.robust_accuracy:.2%}",
            f"{stage.seconds:.1f}", f"{stage.forward_rows}", f"{stage.gradient_rows}",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples themselves, as JSON knows it; their digest (BLAKE3) stands for them."""
        return {
            "schema": SCHEMA,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "seed": str(self.seed),  # larger than what many readers of JSON keep
            "samples": len(self.fooled_at),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": [{"eps": eps, "value": share} for eps, share in self.curve.items()],
            "stages": [asdict(stage) for stage in self.stages],
            "warnings": [asdict(finding) for finding in self.warnings],
            "unconfirmed": self.unconfirmed,
            "seconds": self.seconds,
            "fooled_at": [None if np.isnan(eps) else float(eps) for eps in self.fooled_at],
            "fooled_by": list(self.fooled_by),
            "x_adv_blake3": digest([self.x_adv], {}),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, also written to ``path`` (whole or not at all)."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            write_whole(Path(path), text)
        return text

    def to_html(self, path: str | Path) -> None:
        """Write a page that needs no other file and no network. ModuleNotFoundError without the extra ``report``."""
        from ..cli._output import missing_package
        from ..cli.report.attack_page import build

        try:
            page = build(self)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_package(error) or str(error), name=error.name) from error
        write_whole(Path(path), page)
