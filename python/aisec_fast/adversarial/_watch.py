"""NaN and infinity: noted at every step on the device, read now and then, and never returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _rows

_STEPS_A_LOOK = 8


class Watch:
    """Losses and largest gradient magnitudes of the last steps, not yet looked at. Looking waits for the device."""

    def __init__(self) -> None:
        self._losses: list[Any] = []
        self._magnitudes: list[Any] = []
        self._first = 0  # step of the first entry

    def note(self, step: int, losses: Any | None, magnitudes: Any | None) -> None:
        """Keep what the model gave after ``step`` steps, ``[B]`` each."""
        if not self._losses and not self._magnitudes:
            self._first = step
        if losses is not None:
            self._losses.append(losses)
        if magnitudes is not None:
            self._magnitudes.append(magnitudes)
        if max(len(self._losses), len(self._magnitudes)) >= _STEPS_A_LOOK:
            self.look()

    def look(self) -> None:
        """Raise ValueError if one of the steps noted gave NaN logits or a gradient that is NaN or infinite."""
        losses, magnitudes, self._losses, self._magnitudes = self._losses, self._magnitudes, [], []
        if losses:
            self._require(~np.isnan(_rows.stack_to_host(losses)), "NaN or infinite logits")
        if magnitudes:
            self._require(np.isfinite(_rows.stack_to_host(magnitudes)), "a NaN or infinite gradient")

    def _require(self, fine: npt.NDArray[np.bool_], what: str) -> None:
        for step, row in enumerate(fine, self._first):
            if not row.all():
                raise ValueError(
                    f"model gave {what} for {np.count_nonzero(~row)} of {row.size} samples after {step} steps, "
                    "expected finite ones"
                )
