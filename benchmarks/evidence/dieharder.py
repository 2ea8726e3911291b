"""Run dieharder (R. G. Brown, 3.31.1) on the words of a generator, once per generator, and record every p-value.

    python benchmarks/evidence/dieharder.py --source seeded            ChaCha12; all tests, about an hour of one quiet core
    python benchmarks/evidence/dieharder.py --source secure            what SecureSource uses on this CPU
    python benchmarks/evidence/dieharder.py --source seeded --tests 0,2,203:16     dieharder's numbers, 203 at lag 16 only

The words come from `noise.random_words` in calls of 2^23 (64 MiB), each with its own key, through a pipe. dieharder is in
Debian and Ubuntu under that name (`apt-get install dieharder`); --program names another place.

Reading the result: a p-value below 1e-6 counts as failed, below 0.005 or above 0.995 as weak. About 1 % of the p-values
of a perfect generator are weak. With `-Y 1` dieharder repeats a weak test with more samples until it passes or fails. One
failure in a run of about 115 p-values has a probability of 1e-4 for a perfect generator. Exit code 1 if a test failed. A run that
is stopped (Ctrl-C, or dieharder itself killed) records what it has, as "stopped"; --tests does the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import record

from aisec_fast import noise, set_num_threads

WORDS = 2**23
SEED = 20
LINE = re.compile(r"^\s*(\S+)\|\s*(\d+)\|\s*(\d+)\|\s*(\d+)\|([0-9.]+)\|\s*(PASSED|WEAK|FAILED)\s*$")


def source_of(name: str) -> noise.SeededSource | noise.SecureSource:
    return noise.SeededSource(SEED) if name == "seeded" else noise.SecureSource()


def feed(pipe: IO[bytes], source: Any) -> None:
    """Write words until dieharder closes its end."""
    with contextlib.suppress(BrokenPipeError), pipe:
        while True:
            pipe.write(memoryview(noise.random_words(WORDS, source=source)).cast("B"))


def run(program: str, options: list[str], source: Any, found: list[dict[str, Any]]) -> bool:
    """One run of dieharder, whose lines go to the screen and to ``found`` as they come; False if it was stopped."""
    child = subprocess.Popen([program, "-g", "200", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    feeder = threading.Thread(target=feed, args=(child.stdin, source), daemon=True)
    feeder.start()
    try:
        for raw in child.stdout:
            text = raw.decode(errors="replace").rstrip()
            print(text, flush=True)
            found += parsed(text)
    except KeyboardInterrupt:
        child.terminate()
    code = child.wait()
    if code > 0:
        raise SystemExit(f"{program} {' '.join(options)} ended with code {code}")
    return code == 0


def parsed(text: str) -> list[dict[str, Any]]:
    """What a line of dieharder's output says of a test, if it does."""
    if (match := LINE.match(text)) is None:
        return []
    name, ntuple, samples, repeats, p, assessment = match.groups()
    numbers = {"ntuple": int(ntuple), "samples": int(samples), "repeats": int(repeats), "p": float(p)}
    return [{"test": name, **numbers, "assessment": assessment}]


def plans_of(tests: str) -> list[list[str]]:
    """dieharder's options for each of its runs."""
    if tests == "all":
        return [["-a"]]
    parts = [part.partition(":") for part in tests.split(",")]
    return [["-d", number, *(["-n", ntuple] if ntuple else [])] for number, _, ntuple in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("seeded", "secure"), required=True)
    parser.add_argument("--tests", default="all", help="'all' or dieharder's numbers, with commas")
    parser.add_argument("--program", default="dieharder")
    parser.add_argument("--name", help="of the generator, for the file's name; default: the source's")
    arguments = parser.parse_args()
    program = shutil.which(arguments.program)
    if program is None:
        parser.error(f"--program is {arguments.program!r}: no such program; install the package dieharder")
    set_num_threads(1)
    start, source, lines, stopped = time.perf_counter(), source_of(arguments.source), [], False
    for plan in plans_of(arguments.tests):
        stopped = not run(program, [*plan, "-k", "2", "-Y", "1"], source, lines)
        if stopped:
            break
    counts = {what: sum(line["assessment"] == what for line in lines) for what in ("PASSED", "WEAK", "FAILED")}
    version = subprocess.run([program, "-l"], capture_output=True, text=True, check=False).stdout
    stated = re.search(r"dieharder version (\S+)", version)
    findings = {
        "what": f"dieharder {stated[1] if stated else 'unknown'} on noise.random_words",
        "source": arguments.source,
        "seed": SEED if arguments.source == "seeded" else None,
        "tests": arguments.tests,
        "stopped": stopped,
        "counts": counts,
        "lines": lines,
    }
    name = "dieharder-" + (arguments.name or arguments.source)
    print(counts, "written to", record.write(name, findings, time.perf_counter() - start).relative_to(Path.cwd()))
    return 1 if counts["FAILED"] or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
