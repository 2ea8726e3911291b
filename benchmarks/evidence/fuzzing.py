"""Does any input break a parser? Runs the coverage-guided fuzzer of tests/fuzz on every parser and records what it found.

    python benchmarks/evidence/fuzzing.py                 half an hour; needs atheris (pip install --group fuzz)
    python benchmarks/evidence/fuzzing.py --seconds 60 manifest

tests/fuzz/properties.py says what must hold. Every run starts from the seeds alone. "edges" and "features" are libFuzzer's
counts of what was reached in our Python code; "last_new_edge_at" is the execution that reached the last new edge: the further
before the end, the less a longer run would find. "findings" are inputs that broke a property, hung for over 10 seconds or took
over 2 GB; a run ends at its first. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import base64
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fuzz.properties import PROPERTIES

FUZZ = Path(__file__).parents[2] / "tests" / "fuzz" / "fuzz.py"
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=1", "-seed=1")


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        command = [sys.executable, str(FUZZ), name, str(corpus), f"-max_total_time={seconds}", *LIMITS]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, f"-artifact_prefix={folder}/"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        log = done.stdout
        tail = log[max(log.find("Python exception"), len(log) - 4000) :]
        steps = re.findall(r"^#(\d+)\s+\S+ +cov: (\d+) ft: (\d+)", log, re.MULTILINE)
        if not steps:
            print(log[-3000:])
            raise SystemExit(2)
        edges = int(steps[-1][1])
        inputs = [path for path in Path(folder).iterdir() if path.is_file() and path.suffix != ".dict"]
        findings = [
            {
                "kind": path.name.partition("-")[0],
                "input": base64.b64encode(path.read_bytes()).decode(),
                "log": tail,
            }
            for path in inputs
        ]
        if done.returncode and not findings:
            findings = [{"kind": f"exit code {done.returncode}", "log": tail}]
        executions = re.search(r"number_of_executed_units: (\d+)", log)
        return {
            "parser": name,
            "executions": int(executions[1]) if executions else int(steps[-1][0]),
            "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            "edges": edges,
            "features": int(steps[-1][2]),
            "last_new_edge_at": next(int(number) for number, cov, _ in steps if int(cov) == edges),
            "corpus": len(list(corpus.iterdir())),
            "findings": findings,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"default: all of {', '.join(PROPERTIES)}")
    parser.add_argument(
        "--seconds", type=int, default=600, help="for each parser; a fifth for those of a single word or name"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.parsers) - set(PROPERTIES):
        parser.error(f"no parser {', '.join(sorted(unknown))}, expected some of {', '.join(PROPERTIES)}")
    start, rows = time.perf_counter(), []
    for name in arguments.parsers or PROPERTIES:
        share = 5 if name in ("arguments", "names") else 1  # they have no structure: every edge is reached in seconds
        rows.append(fuzz(name, max(1, arguments.seconds // share)))
        print({key: value for key, value in rows[-1].items() if key != "findings"}, flush=True)
        for finding in rows[-1]["findings"]:
            print(*finding.values(), sep="\n", flush=True)
    versions = record._results.versions(("atheris",))
    path = record.write(
        "-".join(["fuzzing", *arguments.parsers]),
        {"atheris": versions.get("atheris"), "rows": rows},
        time.perf_counter() - start,
    )
    print("written to", path)
    return 1 if any(row["findings"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
