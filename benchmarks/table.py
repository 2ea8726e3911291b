"""The README's table of kernels, made from committed results: `python benchmarks/table.py` rewrites it in place.

`tests/test_codebase.py` checks that the README holds what this makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- benchmarks/table.py: start -->", "<!-- benchmarks/table.py: end -->"


OURS = ("native", "numba", "cuda", "SecureSource")
# All on the CPU; on a GPU the kernels, of which some were measured again later, and steps of DP-SGD.
KINDS = ("bench", "gpu-kernels", "gpu-noise", "gpu-clipping", "gpu-training")


def newest(kind: str) -> Path:
    """The newest committed run of a kind."""
    return max((ROOT / "benchmarks" / "results").glob(f"{kind}-*.json"))


def digits(value: float) -> str:
    """Two after the point, and at least two that say something."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def name_of(row: dict[str, Any]) -> str:
    """An instruction set says enough for our own kernels; a star: not private-safe."""
    name = row["instruction_set"] if row["backend"] == "native" and row["instruction_set"] else row["backend"]
    return name if row["private_safe"] else f"{name} \\*"


def listed(rows: list[dict[str, Any]], unit: float) -> str:
    return " · ".join(f"{name_of(row)} {digits(row['ns'] / unit)}" for row in rows) or "-"


def again(documents: list[dict[str, Any]], number: int) -> set[str]:
    """Operations of a document that a later one has on the same GPU."""
    names = documents[number]["machine"]["cuda"].get("names", [])
    later = [one for one in documents[number + 1 :] if one["machine"]["cuda"].get("names", []) == names]
    return {row["operation"] for one in later for row in one["rows"]}


def table(document: dict[str, Any], name: str, without: set[str]) -> str:
    """A line for every operation at its largest size, on all threads it was measured with."""
    machine, torch = document["machine"], document["versions"].get("torch", "absent")
    gpu = ", ".join(machine["cuda"].get("names", [])) or "no GPU"
    intro = (
        f"`{document['command']}` on {document['date'][:10]}, {machine['model']}, {machine['cores']} cores, {gpu}, torch {torch} "
        f"([results](benchmarks/results/{name})). Beside the floor: for kernels (ns for each value; hashing: byte) the time that "
        "moving the same memory alone takes, for whole steps (ms) a plain step, or the passes of an attack."
    )
    head = "threads | ours | others | floor |"
    lines = ["", f"| kernel, ns | size | {head} best, % of floor |", "|---|---|---|---|---|---|---|"]
    steps = ["", f"| whole step, ms | {head} ours, times the floor |", "|---|---|---|---|---|---|"]
    # Norms of layers are measured on too many layers for a README; docs/ghost.md sums them up.
    shown = [row for row in document["rows"] if row["family"] != "ghost" and row["operation"] not in without]
    for operation in dict.fromkeys(row["operation"] for row in shown):
        rows = [row for row in shown if row["operation"] == operation]
        most = max((row["size"], row["threads"]) for row in rows)
        rows = [row for row in rows if (row["size"], row["threads"]) == most]
        for shape in dict.fromkeys(tuple(row["shape"]) for row in rows):
            case = [row for row in rows if tuple(row["shape"]) == shape]
            ours = [row for row in case if row["backend"] in OURS]
            others = [row for row in case if row["backend"] not in OURS]
            floor, threads = ours[0]["floor_ns"], ours[0]["threads"]
            if ours[0]["gb_per_s"]:
                lines.append(
                    f"| `{operation}` | {'x'.join(map(str, shape))} | {threads} | {listed(ours, 1)} | {listed(others, 1)} | "
                    f"{digits(floor)} | {max(row['percent_of_floor'] for row in ours):.0f} |"
                )
            else:
                left = f", {ours[0]['checked']}" if ours[0]["checked"].endswith("left") else ""
                steps.append(
                    f"| `{operation}`{left} | {threads} | {listed(ours, 1e6)} | {listed(others, 1e6)} | {digits(floor / 1e6)} | "
                    f"{min(row['ns'] for row in ours) / floor:.2f} |"
                )
    return "\n".join([intro, *[line for part in (lines, steps) if len(part) > 3 for line in part]])


def readme(text: str) -> str:
    """The README's text with the table of the newest results."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    files = list(map(newest, KINDS))
    documents = [json.loads(file.read_text()) for file in files]
    tables = [
        table(one, file.name, again(documents, i)) for i, (one, file) in enumerate(zip(documents, files, strict=True))
    ]
    return "\n\n".join([f"{before}{START}", *tables, f"{END}{after}"])


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text()))
