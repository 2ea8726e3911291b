"""What every piece of evidence carries: the command, the date, the commit and the machine, beside the findings."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

from aisec_fast._writing import write_whole
from aisec_fast.cli.bench import _results

HERE = Path(__file__).parent


def write(name: str, findings: dict[str, Any], seconds: float) -> Path:
    """Write ``results/<name>-<date>.json`` and return its path."""
    now = dt.datetime.now(dt.timezone.utc)
    document = {
        "command": " ".join(["python", f"benchmarks/evidence/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": now.isoformat(timespec="seconds"),
        "commit": _results._commit(),
        "seconds": round(seconds, 1),
        "machine": _results.machine(),
        "versions": _results.versions(("numpy", "numba", "mpmath", "scipy")),
        **findings,
    }
    path = HERE / "results" / f"{name}-{now.date().isoformat()}.json"
    write_whole(path, json.dumps(document, indent=1) + "\n")
    return path
