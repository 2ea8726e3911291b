"""NaN and infinity: noted at every step, read now and then where reading waits for a device, and never returned."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _rows

_STEPS_A_LOOK = 8


class Watch:
    """Losses and largest gradient magnitudes of the last steps, not yet looked at. Looking waits for the device."""

    def __init__(self) -> None:
        self._losses: list[tuple[int, Any]] = []  # after so many steps, [B]
        self._magnitudes: list[tuple[int, Any]] = []

    def note(self, step: int, losses: Any | None, gradient: Any | None, largest: Any | None = None) -> None:
        """Keep what the model gave after ``step`` steps: losses ``[B]`` and gradient ``[B, ...]``, or its largest magnitudes.

        On the CPU the sum of a gradient, which is read in a third of the time, tells first whether it is finite.
        """
        if losses is not None:
            self._losses.append((step, losses))
        on_cpu = gradient is not None and _rows.on_cpu(gradient)
        if largest is not None:
            self._magnitudes.append((step, largest))
        elif gradient is not None and not (on_cpu and _rows.surely_finite(gradient)):
            self._magnitudes.append((step, _rows.largest_magnitudes(gradient)))
            if on_cpu:
                self.look()
        if max(len(self._losses), len(self._magnitudes)) >= _STEPS_A_LOOK:
            self.look()

    def look(self) -> None:
        """Raise ValueError if one of the steps noted gave NaN logits or a gradient that is NaN or infinite."""
        losses, magnitudes, self._losses, self._magnitudes = self._losses, self._magnitudes, [], []
        _require(losses, np.isnan, "NaN or infinite logits")
        _require(magnitudes, lambda values: ~np.isfinite(values), "a NaN or infinite gradient")


def _require(noted: list[tuple[int, Any]], is_bad: Any, what: str) -> None:
    if not noted:
        return
    for (step, _), bad in zip(noted, is_bad(_rows.stack_to_host([values for _, values in noted])), strict=True):
        if bad.any():
            raise ValueError(
                f"model gave {what} for {np.count_nonzero(bad)} of {bad.size} samples after {step} steps, "
                "expected finite ones"
            )
