"""Where an evaluation stands, and files that it goes on from."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _checks, hashing
from .._backends import host_work
from .._writing import write_whole
from . import _apgd, _rows

_FORMAT = "aisec_fast.adversarial.checkpoint/1"


@dataclass
class Stage:
    """One attack at one eps, on the samples that were still right."""

    attack: str
    eps: float
    samples: int
    newly_fooled: int = 0
    robust_accuracy: float = 0.0
    seconds: float = 0.0
    forward_rows: int = 0
    gradient_rows: int = 0
    differences: int = 0  # times that a sample fooled the working copy of the module and not the module


@dataclass
class State:
    """Verdicts so far."""

    fooled_at: npt.NDArray[np.float64]  # [B]: eps that fooled it; 0: wrong already; NaN: not fooled
    fooled_by: npt.NDArray[np.int64]  # [B]: which of the attacks, or -1
    x_adv: Any  # like x
    stages: list[Stage] = field(default_factory=list)  # those before the last one are over
    parts_done: int = 0  # of the last stage
    open_: _rows.Rows = field(default_factory=lambda: np.empty(0, np.intp))  # samples of the last stage
    notes: dict[str, _apgd.Notes] = field(default_factory=dict)

    def record(self, rows: _rows.Rows, adv: Any, eps: float, attack: int) -> None:
        """These rows are fooled."""
        _rows.put(self.x_adv, rows, adv)
        self.fooled_at[rows], self.fooled_by[rows] = eps, attack


def digest(parts: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """Of settings, and of arrays, in hexadecimal."""
    digests = [hashing.hash_array(part) for part in parts]
    with host_work("settings"):
        return str(hashing.blake3(b"".join([json.dumps(settings, sort_keys=True).encode(), *digests])).hexdigest())


def weights(module: Any) -> list[Any]:
    """What a torch module has learnt, as far as it lies in memory as plain values: parameters, and floating-point buffers.

    (Answers alone would not tell two models apart that are right about all samples. Buffers of integers may be counters.)
    """
    tensors = (tensor.detach() for tensor in chain(module.parameters(), module.buffers()) if tensor.is_floating_point())
    plain = (tensor for tensor in tensors if tensor.layout == sys.modules["torch"].strided)
    return [tensor.contiguous() for tensor in plain if tensor.device.type in ("cpu", "cuda")]


class Checkpoint:
    """A file with a state, bound to what the state belongs to."""

    def __init__(self, path: object) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"checkpoint is {_checks.kind_of(path)}, expected a path")
        self.path = Path(path)

    def save(self, state: State, *, bound_to: str, seed: int) -> None:
        """Write the state beside the file, then rename."""
        fooled = np.flatnonzero(state.fooled_at > 0)
        about = {
            "format": _FORMAT,
            "bound_to": bound_to,
            "seed": str(seed),
            "stages": [asdict(stage) for stage in state.stages],
            "parts_done": state.parts_done,
            "notes": {name: asdict(note) for name, note in state.notes.items()},
        }
        file = io.BytesIO()
        np.savez(
            file,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            fooled_at=state.fooled_at,
            fooled_by=state.fooled_by,
            open=state.open_,
            fooled=fooled,
            adv=_rows.to_host(_rows.take(state.x_adv, fooled)),
        )
        write_whole(self.path, file.getvalue())

    def seed(self) -> int | None:
        """The seed of the evaluation that wrote the file, None without a file."""
        return int(self._about(self._read())["seed"]) if self.path.exists() else None

    def load(self, state: State, *, bound_to: str) -> None:
        """Go on from the file, if there is one; ValueError if it belongs to something else."""
        if not self.path.exists():
            return
        arrays = self._read()
        about = self._about(arrays)
        if about["bound_to"] != bound_to:
            raise ValueError(
                f"checkpoint {str(self.path)!r} belongs to another evaluation (the model, x, y or a setting differs); "
                "give another path, or remove the file"
            )
        try:
            stages = [Stage(**stage) for stage in about["stages"]]
            notes = {name: _apgd.Notes(**note) for name, note in about["notes"].items()}
        except (TypeError, AttributeError) as error:
            raise self._not_whole(error) from error
        for name, like in (("fooled_at", state.fooled_at), ("fooled_by", state.fooled_by)):
            if arrays[name].shape != like.shape:
                raise self._not_whole(f"{name} has shape {arrays[name].shape}, expected {like.shape}")
        state.fooled_at, state.fooled_by, state.open_ = arrays["fooled_at"], arrays["fooled_by"], arrays["open"]
        state.stages, state.notes, state.parts_done = stages, notes, about["parts_done"]
        _rows.put(state.x_adv, arrays["fooled"], _rows.from_host(arrays["adv"], state.x_adv))

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        try:
            with self.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in ("about", "fooled_at", "fooled_by", "open", "fooled", "adv")}
        except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise self._not_whole(error) from error

    def _about(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        try:
            about: dict[str, Any] = dict(json.loads(arrays["about"].tobytes()))
        except (ValueError, TypeError) as error:
            raise self._not_whole(error) from error
        if about.get("format") != _FORMAT:
            raise ValueError(f"checkpoint {str(self.path)!r} has format {about.get('format')!r}, expected {_FORMAT!r}")
        kinds = {"bound_to": str, "seed": str, "stages": list, "parts_done": int, "notes": dict}
        for name, kind in kinds.items():
            if not isinstance(about.get(name), kind):
                raise self._not_whole(
                    f"{name} is {_checks.kind_of(about.get(name))}, expected {_checks.with_article(kind.__name__)}"
                )
        return about

    def _not_whole(self, reason: object) -> ValueError:
        return ValueError(f"checkpoint {str(self.path)!r} is not a whole checkpoint of an evaluation: {reason}")
