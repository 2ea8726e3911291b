"""Random numbers of attacks: one generator for each seed and place, so that no sample's draws depend on another's."""

from __future__ import annotations

import numpy as np

from .. import _checks


def seed_of(seed: object) -> int:
    """The seed asked for, or one from the operating system; TypeError or ValueError if it is none."""
    if seed is None:
        entropy = np.random.SeedSequence().entropy
        assert isinstance(entropy, int)
        return entropy
    return _checks.whole(seed, "seed")


def generator(seed: int, *place: int) -> np.random.Generator:
    """The generator of one place, for example (restart, sample): independent of every other place's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)))
