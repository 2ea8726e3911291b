"""Counts the instructions of every hot kernel under valgrind and compares them with committed numbers.

Time on a shared machine says little about a change of a few percent; the number of instructions executed on fixed
inputs is the same every time. It is no measure of speed (a cache miss is not seen), but it finds what was made slower by
accident.

    python benchmarks/guard/guard.py            compare; exit code 1 if a kernel needs over 5 % more than is committed
    python benchmarks/guard/guard.py --update   write the numbers of this build
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMITTED = HERE / "instructions.json"
TOLERANCE = 0.05
# Forced, so that the numbers do not depend on the machine; valgrind 3.19 knows no AVX-512 and no SHA instructions.
INSTRUCTION_SETS = ("avx2", "baseline")


class GuardError(Exception):
    """The guard cannot judge; the message says why."""


def build() -> Path:
    """The guard program, linked with the very objects of the installed extension."""
    folders = sorted(ROOT.glob("build/cp*/CMakeCache.txt"), key=lambda cache: cache.stat().st_mtime)
    if not folders:
        raise GuardError("no build folder: run `make test` or `make demo` first")
    folder = folders[-1].parent
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if cmake is None:
        raise GuardError("cmake is not installed")
    done = subprocess.run(
        [cmake, "--build", str(folder), "--target", "guard"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise GuardError(f"the guard program does not build:\n{done.stdout}{done.stderr}")
    return folder / "guard"


def compiler() -> str:
    """The compiler whose code is counted: another one makes other code."""
    caches = sorted(ROOT.glob("build/cp*/CMakeFiles/*/CMakeCXXCompiler.cmake"), key=lambda path: path.stat().st_mtime)
    text = caches[-1].read_text() if caches else ""
    found = [re.search(rf'CMAKE_CXX_COMPILER_{what} "([^"]+)"', text) for what in ("ID", "VERSION")]
    return " ".join(match[1].partition(".")[0] if match else "unknown" for match in found)


def _instructions(program: Path, isa: str, kernel: str) -> int:
    only = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=counted"]
    done = subprocess.run(["valgrind", *only, str(program), isa, kernel], capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None or found[1] == "0":
        raise GuardError(f"{isa} {kernel} under valgrind ended with {done.returncode}:\n{done.stderr}")
    return int(found[1])


def count(program: Path) -> dict[str, int]:
    """Instructions of one call of each kernel: "<isa> <kernel>" -> number."""
    listing = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [name for name in listing if name.split()[0] in INSTRUCTION_SETS]

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(names, threads.map(lambda name: _instructions(program, *name.split()), names), strict=True))


def slower(measured: dict[str, int], committed: dict[str, int]) -> list[str]:
    """What is wrong, in words: kernels over the tolerance, kernels without a committed number, kernels that are gone."""
    faults = []
    for name, number in measured.items():
        if name not in committed:
            faults.append(f"{name}: no committed number; `make bench-guard UPDATE=1` writes it")
        elif number > committed[name] * (1 + TOLERANCE):
            faults.append(
                f"{name}: {number:,} instructions, committed {committed[name]:,} (+{number / committed[name] - 1:.1%})"
            )
    faults += [f"{name}: has a committed number but was not run" for name in committed if name not in measured]
    return faults


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the numbers of this build")
    parser.add_argument(
        "--if-possible",
        action="store_true",
        help="where nothing can be compared (no valgrind, another compiler), say so and end with 0; not if "
        "AISEC_FAST_REQUIRE_VALGRIND is set",
    )
    arguments = parser.parse_args()
    try:
        return run(update=arguments.update)
    except GuardError as error:
        print(f"guard: {error}", file=sys.stderr)
        required = os.environ.get("AISEC_FAST_REQUIRE_VALGRIND", "0") not in ("", "0")
        return 0 if arguments.if_possible and not required else 2


def run(*, update: bool) -> int:
    """Count, then write or compare."""
    if shutil.which("valgrind") is None:
        raise GuardError("valgrind is not installed (Debian: apt-get install valgrind)")
    program = build()
    measured: dict[str, Any] = count(program)
    if update:
        COMMITTED.write_text(json.dumps({"compiler": compiler(), "instructions": measured}, indent=1) + "\n")
        print(f"wrote {COMMITTED.relative_to(ROOT)}: {len(measured)} kernels")
        return 0
    committed = json.loads(COMMITTED.read_text())
    if committed["compiler"] != compiler():
        raise GuardError(f"numbers are of {committed['compiler']}, this build is of {compiler()}: no comparison")
    faults = slower(measured, committed["instructions"])
    for name, number in measured.items():
        before = committed["instructions"].get(name)
        print(f"{name:<28} {number:>12,}  {'' if before is None else f'{number / before - 1:+.1%}'}")
    print(
        "\n".join(
            ["", "slower than committed:", *faults]
            if faults
            else ["", "no kernel needs more instructions than committed"]
        )
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
