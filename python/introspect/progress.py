"""Progress on standard error: bars where that is a terminal, and for long work lines where it is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BEFORE_BARS = 0.5
DAY = 86400


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
def step_bars() -> Iterator[Shown]:
    """Bars for long work in steps, one for each kind; yields the callback ``(what, done, total)`` the library calls."""
    display = Shown(_Bars() if sys.stderr.isatty() else None)
    try:
        yield display
    finally:
        display.close()


@contextmanager
def step_bars_or_lines() -> Iterator[Shown]:
    """step_bars, and without a terminal a line now and then, for work of hours whose output goes to a file."""
    display = Shown(_Bars() if sys.stderr.isatty() else _Lines())
    try:
        yield display
    finally:
        display.close()


def shown(progress: Progress | bool | None) -> Progress | None:
    """What a function hands to the library for its argument ``progress``.

    A callback is handed on, and False shows nothing. None, the default, shows bars on a terminal and a line in a
    notebook; True shows a line now and then everywhere else, too.
    """
    if callable(progress):
        return progress
    if progress is False:
        return None
    if sys.stderr is not None and sys.stderr.isatty():
        return Shown(_Bars())
    if _in_notebook():
        return Shown(_NotebookLine())
    return Shown(_Lines()) if progress else None


def close(progress: Progress | None) -> None:
    """Take away what `shown` has put up."""
    if isinstance(progress, Shown):
        progress.close()


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


class TimeLeft:
    """How long work lasts still, at the pace it has had since it began."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def seconds(self, done: int, total: int) -> float | None:
        """None while that cannot be told: at the beginning, and of the first hundredth of the work."""
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start = now, done
        began, found = self._start
        if now - began < 1.0 or done <= found or (done - found) * 100 < total - found:
            return None
        return (total - done) * (now - began) / (done - found)


class _Step:
    """One kind of work: what is finished, and how far the work is by its own measure."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = self.total = 0
        self.work: tuple[int, int] | None = None
        self._left = TimeLeft()
        self.left: float | None = None

    def tell(self) -> None:
        self.left = self._left.seconds(*(self.work or (self.done, self.total)))

    @property
    def fraction(self) -> float:
        done, total = self.work or (self.done, self.total)
        return min(1.0, done / total) if total else 0.0

    @property
    def count(self) -> str:
        return f"{self.done:,} of {self.total:,}" if self.total else ""

    @property
    def time_left(self) -> str:
        return "" if self.left is None else f"{duration(self.left)} left"

    @property
    def line(self) -> str:
        left = f", {self.time_left}" if self.time_left else ""
        return f"{self.what}: {self.count} ({100 * self.fraction:.0f}% of the work){left}"


class Shown:
    """A callback for long work that shows it.

    ``work`` is told in a finer measure than what is finished, where there is one (an experiment finishes many readings
    at once, and some take longer than others): the bar and the time left follow it.
    """

    def __init__(self, display: _Display | None) -> None:
        self._display = display
        self._steps: dict[str, _Step] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        step = self._step(what)
        step.done, step.total = done, total
        if step.work is None:
            step.tell()
        self._show(step)

    def work(self, what: str, done: int, total: int) -> None:
        step = self._step(what)
        step.work = done, total
        step.tell()
        self._show(step)

    def close(self) -> None:
        if self._display:
            self._display.close()
            self._display = None

    def __del__(self) -> None:
        self.close()

    def _step(self, what: str) -> _Step:
        return self._steps.setdefault(what, _Step(what))

    def _show(self, step: _Step) -> None:
        if self._display:
            self._display.show(step)


class _Display(Protocol):
    def show(self, step: _Step) -> None: ...

    def close(self) -> None: ...


class _Bars:
    """On a terminal, once the work has lasted a moment."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def show(self, step: _Step) -> None:
        if self._bars is None:
            if time.monotonic() - self._began < SECONDS_BEFORE_BARS:
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("count", "left")]
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), *texts)
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
            self._bars.start()
        if step.what not in self._tasks:
            self._tasks[step.what] = self._bars.add_task(escaped(step.what), total=1.0, count="", left="")
        self._bars.update(self._tasks[step.what], completed=step.fraction, count=step.count, left=step.time_left)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


class _Lines:
    """In a file: a line now and then."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def show(self, step: _Step) -> None:
        now = time.monotonic()
        if now - self._shown < SECONDS_BETWEEN_LINES or not step.total:
            return
        self._shown = now
        print(step.line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _NotebookLine:
    """One line of a notebook's cell, which changes; gone when the work is done."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._handle: Any = None

    def show(self, step: _Step) -> None:
        now = time.monotonic()
        if now - self._shown < SECONDS_BEFORE_BARS:
            return
        self._shown = now
        self._put(step.line)

    def _put(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def close(self) -> None:
        if self._handle is not None:
            self._put("")


def escaped(text: str) -> str:
    """For rich, which reads square brackets as styles."""
    from rich.markup import escape

    return escape(text)


def duration(seconds: float) -> str:
    """ "42 s", "7 min", "3.5 h", "12 days" or "3 years"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / DAY:.0f} days" if seconds < 700 * DAY else f"{seconds / (365 * DAY):,.0f} years"
