"""Coverage-guided fuzzing of one parser, by atheris (libFuzzer): finds inputs that break what properties.py demands.

    python tests/fuzz/fuzz.py checksum_file build/fuzz/checksum_file -max_total_time=60

The first argument is a name in properties.PROPERTIES, the second a folder of inputs, which the fuzzer extends; options of
libFuzzer follow. `make fuzz` runs all of them. An input that breaks a property is written to crash-<hash> and ends the run; to
see it again, give its path instead of the folder.
"""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT)]

from tests.fuzz.mutations import mutate_json


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """What libFuzzer calls for a parser of JSON: mostly a change that leaves it JSON, which its own seldom do."""
    rng = random.Random(seed)
    if rng.random() < 0.75:
        with contextlib.suppress(ValueError, RecursionError):
            return mutate_json(data, rng, lambda part: bytes(atheris.Mutate(part, max_size)))[:max_size]
    return bytes(atheris.Mutate(data, max_size))


def main() -> None:
    name = sys.argv.pop(1)
    # The loader of an editable install would hide our modules from atheris. Without it there are no kernels; none is called.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_aisec_fast"]
    with atheris.instrument_imports(include=["aisec_fast", "json"]):
        from tests.fuzz import seeds
        from tests.fuzz.properties import PROPERTIES
    folder = Path(sys.argv[1])
    if not folder.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds.SEEDS[name]):
            (folder / f"seed-{number}").write_bytes(data)
        words = folder.with_suffix(".dict")
        words.write_text("".join(f'"{seeds.quoted(word)}"\n' for word in seeds.WORDS[name]))
        sys.argv.append(f"-dict={words}")
    mutators = {"custom_mutator": mutate} if name in seeds.JSON else {}
    atheris.Setup(sys.argv, PROPERTIES[name], **mutators)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
