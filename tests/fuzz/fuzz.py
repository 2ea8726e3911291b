"""Coverage-guided fuzzing of one parser, by atheris (libFuzzer): finds inputs that break what properties.py demands.

    python tests/fuzz/fuzz.py checksum_file build/fuzz/checksum_file -max_total_time=60

The first argument is a name in properties.PROPERTIES, the second a folder of inputs, which the fuzzer extends; options of
libFuzzer follow. `make fuzz` runs all of them. An input that breaks a property is written to crash-<hash> and ends the run; to
see it again, give its path instead of the folder.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).resolve().parents[2]


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**64,
    10**400,
    1.5,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "/",
    "..",
    "a/b",
]
ODD += ["\ud800", "\0", "\x1b[2J", "x" * 300, [], {}, [[]], {"": None}]


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Move, double, drop or change a value of a JSON text, which bytes alone seldom do and leave it JSON."""
    rng = random.Random(seed)
    try:
        whole = [json.loads(data)]
    except (ValueError, RecursionError):
        whole = []
    if not whole or rng.random() < 0.25:
        return bytes(atheris.Mutate(data, max_size))
    places: list[tuple[Any, Any]] = [(whole, 0)]
    for holder, key in places:  # grows while it is walked
        value = holder[key]
        inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in inside]
    holder, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0 and len(places) > 1:
        holder, key = rng.choice(places[1:])
        del holder[key]
    elif action == 1:
        other, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif action == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif isinstance(holder[key], str) and action > 2:
        mutated = atheris.Mutate(holder[key].encode("utf-8", "surrogatepass"), max_size)
        holder[key] = bytes(mutated).decode("utf-8", "surrogateescape")
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(whole[0]).encode()[:max_size] if whole else b""


def main() -> None:
    name = sys.argv.pop(1)
    sys.path[:0] = [str(ROOT / "python"), str(ROOT)]
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
    mutators = {"custom_mutator": mutate_json} if name in seeds.JSON else {}
    atheris.Setup(sys.argv, PROPERTIES[name], **mutators)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
