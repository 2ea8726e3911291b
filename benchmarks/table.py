"""The README's table of kernels, made from committed results: `python benchmarks/table.py` rewrites it in place.

`tests/test_codebase.py` checks that the README holds what this makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- benchmarks/table.py: start -->", "<!-- benchmarks/table.py: end -->"


KINDS = ("bench", "gpu-kernels", "gpu-training")  # all on the CPU; on a GPU the kernels, and steps of DP-SGD


def newest(kind: str) -> Path:
    """The newest committed run of a kind."""
    return max((ROOT / "benchmarks" / "results").glob(f"{kind}-*.json"))


def digits(value: float) -> str:
    """Two after the point, and at least two that say something."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def table(document: dict[str, Any], name: str) -> str:
    """Every operation at its largest size, on all threads it was measured with: one line for each contender."""
    machine, torch = document["machine"], document["versions"].get("torch", "absent")
    gpu = ", ".join(machine["cuda"].get("names", [])) or "no GPU"
    intro = (
        f"`{document['command']}` on {document['date'][:10]}, {machine['model']}, {machine['cores']} cores, {gpu}, torch {torch} "
        f"([results](benchmarks/results/{name})). ns for each value (hashing: byte), beside the floor: the time that moving the "
        "same memory alone takes."
    )
    lines = ["", "| kernel | size | threads | by | ns | floor | % of floor | |", "|---|---|---|---|---|---|---|---|"]
    steps = ["", "| whole step | threads | by | ms | floor | times the floor |", "|---|---|---|---|---|---|"]
    # Norms of layers are measured on too many layers for a README; docs/ghost.md sums them up.
    shown = [row for row in document["rows"] if row["family"] != "ghost"]
    for operation in dict.fromkeys(row["operation"] for row in shown):
        rows = [row for row in shown if row["operation"] == operation]
        most = max((row["size"], row["threads"]) for row in rows)
        for row in rows:
            if (row["size"], row["threads"]) != most:
                continue
            by = " ".join(filter(None, (row["backend"], row["instruction_set"])))
            if row["gb_per_s"]:
                mark = "" if row["private_safe"] else "not private-safe"
                lines.append(
                    f"| `{operation}` | {'x'.join(map(str, row['shape']))} | {row['threads']} | {by} | {digits(row['ns'])} | "
                    f"{digits(row['floor_ns'])} | {row['percent_of_floor']:.0f} % | {mark} |"
                )
            else:
                steps.append(
                    f"| `{operation}` | {row['threads']} | {by} | {digits(row['ns'] / 1e6)} | {digits(row['floor_ns'] / 1e6)} | "
                    f"{row['ns'] / row['floor_ns']:.2f} |"
                )
    return "\n".join([intro, *[line for part in (lines, steps) if len(part) > 3 for line in part]])


def readme(text: str) -> str:
    """The README's text with the table of the newest results."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    tables = "\n\n".join(table(json.loads(file.read_text()), file.name) for file in map(newest, KINDS))
    return f"{before}{START}\n\n{tables}\n\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text()))
