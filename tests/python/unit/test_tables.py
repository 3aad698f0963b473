"""Tables in a terminal: they fit, and no word is broken that fits into a line."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from introspect.tables import print_table, printable, table_lines, without_empty_columns, wrapped

HEADER = ["injected", "log-odds", "p(yes)", "shift", "controls", "shift − controls", "random", "z", "among random"]
ROW = ["cat, 0.1 × residual norm, blocks 8–16", "+1.70 → +2.70", "1% → 1%", "+1.00", "+0.40 [+0.20, +0.60]"]
ROW += ["+0.60 [+0.40, +0.80]", "-0.20 to +0.20", "+4.6", "9th of 11, inside"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_cell_of_a_report_is_whole_at_every_width(width):
    lines = table_lines(HEADER, [ROW, ROW], width)
    assert max(map(cell_len, lines)) <= width
    for cell in (*HEADER[1:], *ROW):
        assert sum(cell in line for line in lines) >= 1, cell
    assert len(lines) <= 2 * (5 if width >= 80 else 8)


def test_names_stand_above_their_columns_where_there_is_room():
    first, *rest = table_lines(["a", "long name"], [["x", "1"], ["yy", "200"]], 80)
    assert first == "a   long name" and rest == ["x           1", "yy        200"]


def test_pairs_stand_in_columns_where_there_is_not():
    lines = table_lines(["row", "name", "the other"], [["x" * 12, "1", "2"], ["y", "1000", "3"]], 27)
    assert lines == ["x" * 12, "  name: 1      the other: 2", "y", "  name: 1000   the other: 3"]


words = st.text(alphabet="ab思–→,.%", min_size=1, max_size=12)
cells = st.lists(words, min_size=1, max_size=5).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, min_size=4, max_size=4), min_size=1, max_size=4), st.integers(40, 130))
def test_no_line_is_too_wide_and_no_word_is_broken(rows, width):
    header, rows = ["first", "second", "the third", "fourth"], rows
    lines = table_lines(header, rows, width)
    assert max(map(cell_len, lines)) <= width
    shown = {word for line in lines for word in line.split()}
    assert {word for row in rows for cell in row for word in cell.split()} <= shown


@settings(max_examples=60, deadline=None)
@given(st.text(), st.integers(1, 60))
def test_wrapped_text_fits_and_loses_nothing(text, width):
    lines = wrapped(text, width)
    assert all(cell_len(line) <= max(width, 2) for line in lines)  # a wide character needs two columns
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_control_characters_reach_no_terminal():
    assert printable("a\x1b[31mb\u202e") == "a\\x1b[31mb\\u202e"
    console = Console(width=80, file=io.StringIO())
    print_table(console, ["a", "[bold]b"], [["\x1b]0;title\x07", "[red]x[/red]"]])
    shown = console.file.getvalue()
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[bold]b" in shown and "[red]x[/red]" in shown


def test_columns_without_a_value_are_left_out():
    header, rows = without_empty_columns(["a", "b", "c"], [["", "–", "1"], ["", "", "–"]])
    assert header == ["a", "c"] and rows == [["", "1"], ["", "–"]]
    assert table_lines(["a"], [], 80) == []
