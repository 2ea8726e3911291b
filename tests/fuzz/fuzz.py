"""Coverage-guided fuzzing of one parser, by atheris (libFuzzer): finds inputs that break what properties.py demands.

    python tests/fuzz/fuzz.py checksum_file build/fuzz/checksum_file -max_total_time=60

The first argument is a name in properties.PROPERTIES, the second a folder of inputs, which the fuzzer extends; options of
libFuzzer follow. `make fuzz` runs all of them. An input that breaks a property is written to crash-<hash> and ends the run; to
see it again, give its path instead of the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
# What is instrumented: our parsers and json's Python part, not the packages under them.
MODULES = [
    "aisec_fast.cli._accounting",
    "aisec_fast.cli._checksums",
    "aisec_fast.cli._hashing",
    "aisec_fast.cli._output",
    "aisec_fast.cli.bench._results",
    "aisec_fast.cli.bench._show",
    "aisec_fast.integrity",
    "json",
]


def main() -> None:
    name = sys.argv.pop(1)
    sys.path[:0] = [str(ROOT / "python"), str(ROOT)]
    with atheris.instrument_imports(include=MODULES):
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
    atheris.Setup(sys.argv, PROPERTIES[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
