"""``aisec-fast bench``: every kernel on every backend beside its peers and its floor, checked before it is timed."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aisec_fast

from ..._errors import BackendError
from ..._writing import check_destination, write_whole
from .._output import CommandError, console_for_tables, require, say, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ._measure import Case, Skipped

HELP = "time every kernel on every backend beside its peers and its floor"
DESCRIPTION = """\
Runs every operation on every backend (numpy, torch and other peers where they are installed, Numba, the native kernels of
each instruction set, CUDA where there is a GPU), over sizes and threads. Contenders take turns in every round; each result
is compared with a float64 reference before anything is timed; each row stands beside its floor: the memory traffic it cannot
avoid, or the plain training step, measured in the same rounds. Rows are marked if other programs took over 10 % of the
machine meanwhile. Exit code 1 if a result was wrong; the case is then left out."""
EPILOG = """\
examples:
  aisec-fast bench --quick                          a table in some ten minutes
  aisec-fast bench --json after.json --html page.html
  aisec-fast bench --family noise --size 1048576 --threads 1
  aisec-fast bench --memory                         peak memory of private and plain training steps
  aisec-fast bench --compare before.json after.json exit code 1 if something became slower
"""
FAMILIES = ("noise", "clipping", "ghost", "hashing", "adversarial", "update", "privacy")
_FULL_SIZES = tuple(2**k for k in range(10, 27, 2))
_QUICK_SIZES = (2**12, 2**17, 2**22)
_BYTES_PER_VALUE = 40  # memory that a case needs at most: inputs, outputs, peers' temporaries
_DIFFERS, _FINE, _INTERRUPTED = 1, 0, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--quick", action="store_true", help="three sizes, few rounds; some ten minutes on 2 cores")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family (can be repeated)")
    parser.add_argument("--operation", action="append", metavar="NAME", help="only this operation (can be repeated)")
    parser.add_argument("--backend", choices=("native", "numba", "cuda"), help="of ours only this one; peers stay")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only what runs there, peers included")
    parser.add_argument("--size", action="append", type=int, metavar="N", help="values (can be repeated)")
    parser.add_argument(
        "--threads", action="append", type=int, metavar="N", help="(can be repeated) default: 1 and all"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds, at least 3 (default 15, quick 7)")
    parser.add_argument("--memory", action="store_true", help="peak memory of training steps, and nothing else")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots (needs the extra 'report')")
    parser.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="measure nothing: B against A")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, write; or compare two files."""
    console = _console(arguments)
    if arguments.compare:
        return _compare(console, arguments)
    sizes, threads, rounds = _plan(arguments)
    for name in (arguments.json, arguments.html):
        if name and name != "-":
            check_destination(Path(name))
    if arguments.memory:
        return _peaks(console, arguments)
    if arguments.html:
        require(("plotly", "jinja2"), "report", "--html")
    if arguments.backend:
        with aisec_fast.use_backend(arguments.backend):
            pass  # raises if it is missing
    _check_device(arguments)
    from . import _cases

    chosen = [
        case
        for case in _cases.all_cases(sizes, threads)
        if (not arguments.family or case.family in arguments.family)
        and (not arguments.operation or case.operation in arguments.operation)
    ]
    if not chosen:
        raise CommandError("no case is left: see --family, --operation and --size")
    return _run(console, arguments, chosen, rounds)


def _console(arguments: argparse.Namespace) -> Console | None:
    """Where tables go; None where rich is missing and the result goes to a file or a program."""
    try:
        return console_for_tables(stderr=arguments.json == "-")
    except ModuleNotFoundError:
        if arguments.json:
            say("aisec-fast: rich is not installed: no table is shown", error=True)
            return None
        require(("rich",), "demo", "bench without --json")
        raise


def _run(console: Console | None, arguments: argparse.Namespace, chosen: Sequence[Case], rounds: int) -> int:
    from . import _results

    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    interrupted = False
    try:
        for found, left_out in _measured(console, chosen, rounds, arguments):
            rows += found
            skipped += left_out
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - start
    options = _options(arguments)
    document = _results.document(rows, skipped, options=options, interrupted=interrupted, seconds=seconds)
    if console:
        from . import _show

        _show.table(console, document)
    if arguments.html and rows:
        from . import _page

        write_whole(Path(arguments.html), _page.build(document))
    if arguments.json:
        write_json(document, arguments.json)
    if interrupted:
        return _INTERRUPTED
    return _DIFFERS if any(one.wrong for one in skipped) else _FINE


def _measured(
    console: Console | None, chosen: Sequence[Case], rounds: int, arguments: argparse.Namespace
) -> Iterator[tuple[list[dict[str, Any]], list[Skipped]]]:
    """Measure case after case behind a bar."""
    from ._kernels import DifferenceError
    from ._measure import Skipped, measure

    memory = _available_memory()
    with _bar(console, len(chosen)) as begin:
        for case in chosen:
            begin(case.name)
            if memory is not None and case.values * _BYTES_PER_VALUE > memory:
                yield [], [Skipped(case, "all", "not enough memory at this size")]
            else:
                most_seconds = 4.0 if arguments.quick else 10.0
                chosen_only = {"backend": arguments.backend, "device": arguments.device}
                try:
                    yield measure(case, rounds, most_seconds=most_seconds, **chosen_only)
                except DifferenceError as error:
                    yield [], [Skipped(case, "all", f"wrong: {error}", wrong=True)]


@contextmanager
def _bar(console: Console | None, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; what is yielded is called with the name of each case as it begins."""
    if console is None or not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=total)
        done = count(0)
        yield lambda name: progress.update(bar, description=name, completed=next(done))


def _peaks(console: Console | None, arguments: argparse.Namespace) -> int:
    require(("torch", "dp_accounting"), "privacy", "--memory")
    _check_device(arguments)
    from . import _memory, _results

    start = time.perf_counter()
    found = list(_memory.rows(arguments.device or "cpu"))
    if console:
        _memory.show(console, found)
    if arguments.json:
        options = f"--memory{f' --device {arguments.device}' if arguments.device else ''}"
        seconds = time.perf_counter() - start
        whole = _results.document(found, [], options=options, interrupted=False, seconds=seconds)
        write_json({**whole, "format": "memory"}, arguments.json)
    return _FINE


def _check_device(arguments: argparse.Namespace) -> None:
    if "cuda" in (arguments.backend, arguments.device) and aisec_fast.info()["cuda"]["devices"] == 0:
        raise BackendError("backend or device is 'cuda', but no CUDA device is there")


def _options(arguments: argparse.Namespace) -> str:
    """Those that choose what is measured, as one types them."""
    words = ["--quick"] if arguments.quick else []
    for name in ("device", "backend", "rounds", "family", "operation", "size", "threads"):
        values = getattr(arguments, name)
        for value in values if isinstance(values, list) else [values]:
            words += [] if value is None else [f"--{name}", str(value)]
    return " ".join(words)


def _plan(arguments: argparse.Namespace) -> tuple[list[int], list[int], int]:
    sizes = list(arguments.size or (_QUICK_SIZES if arguments.quick else _FULL_SIZES))
    threads = list(arguments.threads or dict.fromkeys((1, os.cpu_count() or 1)))
    rounds = arguments.rounds if arguments.rounds is not None else 7 if arguments.quick else 15
    for name, values, least in (("--size", sizes, 1024), ("--threads", threads, 1), ("--rounds", [rounds], 3)):
        for value in values:
            if value < least:
                raise CommandError(f"{name} is {value}, expected at least {least}")
    return sizes, threads, rounds


def _compare(console: Console | None, arguments: argparse.Namespace) -> int:
    from . import _results

    before, after = (_results.load(Path(name)) for name in arguments.compare)
    rows = _results.compare(before, after)
    if not rows:
        raise CommandError("the two files have no row in common")
    if console:
        from . import _show

        _show.comparison(console, before, after, rows)
        gone, new = _results.unmatched(before, after)
        if gone or new:
            words = f"not compared: {gone} rows of the first file and {new} of the second have no partner"
            console.print(f"[yellow]{words}[/]")
    if arguments.json:
        write_json({"before": arguments.compare[0], "after": arguments.compare[1], "rows": rows}, arguments.json)
    return _DIFFERS if any(row["verdict"] == "slower" for row in rows) else _FINE


def _available_memory() -> int | None:
    """Bytes that may be used without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line}
    return found["MemAvailable"] * 1024 if "MemAvailable" in found else None
