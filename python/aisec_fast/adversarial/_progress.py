"""How an attack tells how far it is: a callback, or a bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import _checks

Progress = Callable[[int, int, "int | None"], object]


def _nothing(step: int, total_steps: int, fooled: int | None) -> None:
    """No progress is shown."""


@contextmanager
def reporting(progress: Progress | bool | None, title: str = "PGD") -> Iterator[Progress]:
    """A callback ``(step, total_steps, fooled or None)`` for the user's choice; a bar lives as long as the block."""
    if progress is None or progress is False:
        yield _nothing
    elif progress is True:
        with bar() as show:
            yield lambda step, total, fooled: show(title, step, total, "" if fooled is None else f"{fooled} fooled")
    elif callable(progress):
        yield progress
    else:
        raise TypeError(
            f"progress is {_checks.kind_of(progress)}, expected None, True for a bar, or a function "
            "(step, total_steps, fooled)"
        )


@contextmanager
def bar() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar on standard error for as long as the block lasts; what is yielded shows title, step, total and words."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("progress=True needs rich: pip install rich", name=error.name) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=None, words="")

        def show(title: str, step: int, total: int, words: str) -> None:
            shown.update(task, description=title, completed=step, total=total, words=words)

        yield show
