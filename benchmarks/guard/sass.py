"""Counts what the CUDA noise kernels issue for a sample, from the machine code that the compiler made: needs no GPU.

An instruction of a warp takes a slot of the scheduler, so slots for a sample bound the speed of a kernel that memory does
not. These are counts and no times: nothing is seen of waiting, of bank conflicts or of units that are slower than others.

    python benchmarks/guard/sass.py                          add_noise_kernel of src/cuda/noise.cu for sm_80 and sm_90
    python benchmarks/guard/sass.py --kernel 'float, float'  those kernels alone whose C++ name has this in it

Needs nvcc and nvdisasm (in the CUDA toolkit, or `pip install nvidia-cuda-nvdisasm`; --nvdisasm says where).

What is counted is the shortest way without a call around each loop that stores eight results: the way of a generator block
whose samples are all decided. The first loop of a kernel is its common one (docs/noise.md, section 8).
"""

from __future__ import annotations

import argparse
import heapq
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What may share a unit on these GPUs. Whatever is in none of them is "other": branches, barriers, moves of predicates.
CLASSES = {
    "integer": r"LOP3|SHF|IADD3|VIADD|LEA|ISETP|VIMNMX|IMNMX|SEL|FSEL|PRMT|PLOP3|FSETP|FMNMX|MOV|BMSK|FLO|POPC",
    "IMAD": r"IMAD",
    "FP32": r"FADD|FMUL|FFMA|I2FP",
    "FP64": r"DADD|DMUL|DFMA|DSETP",
    "convert": r"F2F|F2I|I2F|F2FP|MUFU|FRND",
    "shared": r"LDS|STS",
    "global": r"LDG|STG",
    "local": r"LDL|STL",
    "uniform": r"U[A-Z0-9]+|R2UR|S2UR|LDC|CS2R",
}
Code = list[tuple[str, str]]  # opcode with its modifiers, operands


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    code: Code = field(default_factory=list)
    next: list[int] = field(default_factory=list)


def functions(listing: str) -> dict[str, list[str]]:
    """Lines of every function in what nvdisasm prints."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if name := re.match(r"\.text\.(\S+):", line):
            lines = found.setdefault(name[1], [])
        lines.append(line)
    return found


def blocks(lines: list[str]) -> list[Block]:
    """The graph of a kernel's own code: calls return to where they come from."""
    all_blocks = [Block()]
    labels: dict[str, int] = {}
    jumps: dict[int, str] = {}
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            all_blocks.append(Block())
            labels[label[1]] = len(all_blocks) - 1
            all_blocks[-2].next.append(len(all_blocks) - 1)
            continue
        if not (text := re.match(r"\s+/\*[0-9a-f]+\*/\s+(@\S+ )?([A-Z0-9_.]+)\s*(.*?)\s*;", line)):
            continue
        predicate, opcode, operands = text[1], text[2], text[3]
        all_blocks[-1].code.append((opcode, operands))
        if opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BREAK"):
            here = len(all_blocks) - 1
            if target := re.search(r"\.L_x_\d+", operands):
                jumps[here] = target[0]
            all_blocks.append(Block())
            if predicate or "P" in operands.split("`")[0]:  # or it always jumps
                all_blocks[here].next.append(here + 1)
    for here, label in jumps.items():
        if label in labels:
            all_blocks[here].next.append(labels[label])
    return all_blocks


def shortest(graph: list[Block], head: int, latch: int) -> list[int]:
    """Blocks of the way from head to latch with the fewest instructions and no call, within the loop's place in the code."""
    cost = [len(block.code) + 10_000 * any(opcode.startswith("CALL") for opcode, _ in block.code) for block in graph]
    queue = [(cost[head], [head])]
    seen = set()
    while queue:
        length, way = heapq.heappop(queue)
        if way[-1] == latch:
            return way
        if way[-1] in seen:
            continue
        seen.add(way[-1])
        for following in graph[way[-1]].next:
            if head < following <= latch and following not in seen:
                heapq.heappush(queue, (length + cost[following], [*way, following]))
    return []


def loops(graph: list[Block]) -> list[Code]:
    """The shortest way around each loop that stores to global memory on this way."""
    found = []
    for latch, block in enumerate(graph):
        for head in block.next:
            if head <= latch:
                code = [instruction for k in shortest(graph, head, latch) for instruction in graph[k].code]
                if sum(opcode.startswith("STG") for opcode, _ in code) >= 8:
                    found.append(code)
    return found


def counts(code: Code) -> dict[str, int]:
    """Instructions of each class."""
    found = Counter(
        next((name for name, which in CLASSES.items() if re.fullmatch(which, opcode.split(".")[0])), "other")
        for opcode, _ in code
    )
    return {name: found[name] for name in (*CLASSES, "other")}


def compiled(nvcc: str, nvdisasm: str, architecture: int, folder: Path) -> tuple[str, str]:
    """The machine code, and what the compiler says of registers and memory."""
    generated = sorted(ROOT.glob("build/*/generated"), key=lambda path: path.stat().st_mtime)
    if not generated:
        sys.exit("sass: no build folder: run `make test` first")
    cubin = folder / f"{architecture}.cubin"
    includes = [f"-I{path}" for path in (ROOT / "src/cpp/include", ROOT / "src/cpp", generated[-1])]
    options = ["-O3", "-DNDEBUG", "-std=c++17", "-fmad=false", "-Xptxas", "-v", f"-arch=sm_{architecture}", "-cubin"]
    made = subprocess.run(
        [nvcc, *includes, *options, str(ROOT / "src/cuda/noise.cu"), "-o", str(cubin)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        sys.exit(f"sass: nvcc ended with {made.returncode}:\n{made.stderr}")
    return subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout, made.stderr


def demangled(names: list[str]) -> dict[str, str]:
    """C++ names without namespaces."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = re.sub(r"\(anonymous namespace\)::|aisec_fast::|cuda::|void ", "", done)
    return dict(zip(names, (name.split(">(")[0] + ">" for name in short.splitlines()), strict=True))


def resources(log: str, name: str) -> str:
    """What ptxas says of a kernel."""
    own = log.partition(f"Compiling entry function '{name}'")[2].partition("Compiling")[0]
    found = [
        re.search(pattern, own) for pattern in (r"(\d+) bytes spill stores", r"Used (\d+) reg", r"(\d+) bytes smem")
    ]
    spilled, registers, shared = (int(match[1]) if match else 0 for match in found)
    return f"{registers} registers, {spilled} bytes spilled (on any way), {shared} bytes of shared memory"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="add_noise_kernel", help="part of the C++ name")
    parser.add_argument("--architecture", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--nvdisasm", default=shutil.which("nvdisasm"))
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None or arguments.nvdisasm is None:
        sys.exit("sass: needs nvcc and nvdisasm")
    for architecture in arguments.architecture:
        with tempfile.TemporaryDirectory() as folder:
            listing, log = compiled(nvcc, arguments.nvdisasm, architecture, Path(folder))
        code = functions(listing)
        for name, cpp in demangled([name for name in code if not name.startswith("$")]).items():
            if arguments.kernel not in cpp:
                continue
            print(f"sm_{architecture} {cpp}: {resources(log, name)}")
            for loop in loops(blocks(code[name])):
                samples = sum(opcode.startswith("STG") for opcode, _ in loop)
                parts = ", ".join(f"{what} {n / samples:.2f}" for what, n in counts(loop).items())
                print(f"  {len(loop) / samples:.2f} slots a sample ({len(loop)} for {samples}): {parts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
