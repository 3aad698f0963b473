"""Progress on standard error: bars where that is a terminal, and for long work lines where it is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bytes_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar for a transfer; yields a function that takes the number of bytes there are so far."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars for long work in steps, one for each kind; yields the callback ``(what, done, total)`` the library calls."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield step


SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def step_bars_or_lines() -> Iterator[Callable[[str, int, int], None]]:
    """step_bars, and without a terminal a line now and then, for work of hours whose output goes to a file."""
    if sys.stderr.isatty():
        with step_bars() as bars:
            yield bars
        return
    start = shown = time.monotonic()
    found: int | None = None  # done before we began

    def step(what: str, done: int, total: int) -> None:
        nonlocal found, shown
        now = time.monotonic()
        found = done if found is None else found
        if now - shown < SECONDS_BETWEEN_LINES:
            return
        shown = now
        left = f", {duration((total - done) * (now - start) / (done - found))} left" if done > found else ""
        print(f"{what}: {done:,} of {total:,} ({100 * done / total:.0f}%){left}", file=sys.stderr, flush=True)

    yield step


def duration(seconds: float) -> str:
    """ "42 s", "7 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
