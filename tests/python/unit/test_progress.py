"""Progress: who sees it, what it counts, and how long is left."""

import sys
import types

import pytest

from introspect import progress


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_callback_is_handed_on_and_false_is_silent(monkeypatch):
    def tell(what, done, total):
        pass

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.shown(tell) is tell
    assert progress.shown(False) is None
    assert isinstance(progress.shown(None), progress.Shown)


def test_nothing_is_shown_in_a_file_unless_it_is_asked_for(capsys):
    assert progress.shown(None) is None
    assert isinstance(progress.shown(True), progress.Shown)


def test_a_notebook_has_one_line_that_changes_and_goes(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return Handle()

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(progress, "SECONDS_BEFORE_BARS", 0.0)
    tell = progress.shown(None)
    tell("mine", 1, 4)
    tell("mine", 2, 4)
    progress.close(tell)
    assert shown == ["mine: 1 of 4 (25% of the work)", "mine: 2 of 4 (50% of the work)", ""]


def test_the_time_left_follows_the_work_and_not_the_count(monkeypatch, capsys):
    """Of ten readings one is finished, but half of the work is done: half of the time is left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.step_bars_or_lines() as tell:
        tell("mine", 1, 10)
        tell.work("mine", 0, 1000)
        for second in range(1, 6):
            now[0] = 5.0 * second
            tell.work("mine", 100 * second, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "mine: 1 of 10 (50% of the work), 25 s left"
    # At an even pace what is left falls by what has passed.
    assert [line.partition("work), ")[2] for line in lines[2:]] == [f"{45 - 5 * i} s left" for i in range(5)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5000, "83 min"), (86400, "24.0 h"), (864000, "10 days"), (3e9, "95 years")]
)
def test_long_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_work_that_is_told_as_done_twice_has_no_time_left_to_tell(monkeypatch):
    now = iter([0.0, 5.0])
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    left = progress.TimeLeft()
    assert left.seconds(9, 9) is None
    assert left.seconds(9, 9) is None
