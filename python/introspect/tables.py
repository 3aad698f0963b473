"""Tables of results: as files, and in a terminal of any width."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .output_files import write_bytes

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

FORMATS = (".csv", ".parquet")
NONE = "–"  # a cell without a value
_FORMULA = tuple("=+-@\t\r")  # what makes spreadsheet programs take a cell for a formula
# What pandas.read_csv and its like take for no value.
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
_GAP = 3  # columns between the pairs of a narrow table


def check_format(path: str | os.PathLike) -> Path:
    """The path, if a table of its kind can be written here.

    Raises:
        ValueError: the suffix is neither .csv nor .parquet.
        ImportError: Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"a table's file must end in {' or '.join(FORMATS)}, got {path.name!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ImportError(
                "Parquet files need pyarrow: pip install pyarrow (or this library with its extra, "
                "introspect[parquet]; PyPI's introspect is another project)"
            ) from None
    return path


def write_table(frame: pandas.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as .csv or .parquet; the file is complete or as it was.

    In a .csv a text that begins with = + - @, a tab or a carriage return gets an apostrophe before it, so that a
    spreadsheet program does not run it as a formula (OWASP, "CSV Injection"), and so does one that readers of tables
    take for a missing value (MISSING: "nan", "null", an empty one); numbers are as they are. Parquet files hold every
    text unchanged.

    Raises:
        ValueError: the suffix is neither .csv nor .parquet.
        ImportError: Parquet without pyarrow.
        IoError: the file cannot be written; it names the file.
    """
    path = check_format(path)
    if path.suffix == ".parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, engine="pyarrow", index=False)
        write_bytes(path, buffer.getvalue())
    else:
        write_bytes(path, safe_for_spreadsheets(frame).to_csv(index=False).encode())


def safe_for_spreadsheets(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The same table, each text that would be taken for a formula or a missing value with an apostrophe before it."""

    def safe(cell: object) -> object:
        return "'" + cell if isinstance(cell, str) and (cell.startswith(_FORMULA) or cell in MISSING) else cell

    # Whole columns at a time: those of numbers hold no text and stay as they are.
    texts = [name for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    out = frame.assign(**{name: frame[name].map(safe) for name in texts})
    out.columns = [safe(name) for name in frame.columns]
    return out


def without_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without the columns in which no row has a value."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] not in ("", NONE) for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: in columns where they fit, and otherwise a few lines a row, each value after its name."""
    print_lines(console, table_lines(header, rows, console.width))


def print_lines(console: Console, lines: Sequence[str], style: str = "") -> None:
    """Print lines as they are: no markup, and control characters of free text as escapes (\\x1b)."""
    for line in lines:
        console.print(printable(line), style=style or None, highlight=False, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text with its control characters as escapes, so that it cannot command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table that is at most ``width`` columns wide; only a word longer than that is broken.

    The first column names the row. Where all columns do not fit into a line, each row is its name and, indented
    under it, "name: value" pairs, which stand in the same columns in every row.
    """
    from rich.cells import cell_len

    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    if not rows:
        return []
    widths = _widths([header, *rows])
    if sum(widths) + 2 * (len(widths) - 1) <= width:

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell + " " * (w - cell_len(cell)) if i == 0 else " " * (w - cell_len(cell)) + cell
                for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        return [line(header), *map(line, rows)]
    lines: list[str] = []
    slots = [cell_len(name) + 2 + w for name, w in zip(header[1:], _widths(rows)[1:], strict=True)]
    for row in rows:
        lines += wrapped(row[0], width) or [""]
        pairs = [f"{name}: {cell}" for name, cell in zip(header[1:], row[1:], strict=True)]
        lines += _packed(pairs, slots, width)
    return lines


def wrapped(text: str, width: int, indent: str = "", hanging: str | None = None) -> list[str]:
    """The text in lines of at most ``width`` columns, broken at spaces; only a word longer than a line is broken.

    Args:
        indent: before the first line.
        hanging: before the others; as ``indent`` if not given.
    """
    from rich.cells import cell_len, chop_cells

    hanging = indent if hanging is None else hanging
    lines: list[str] = []
    line, empty = indent, True
    for word in text.split():
        if not empty and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line, empty = hanging, True
        room = max(1, width - max(cell_len(line), cell_len(hanging)))
        *full, word = chop_cells(word, room) if empty and cell_len(word) > room else [word]
        for piece in full:
            lines.append(line + piece)
            line = hanging
        line += word if empty else f" {word}"
        empty = False
    return lines if empty else [*lines, line]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _packed(pairs: Sequence[str], slots: Sequence[int], width: int) -> list[str]:
    """Pairs in lines, each in its slot; where a line is full the next begins."""
    from rich.cells import cell_len

    lines, line = [], "  "
    for pair, slot in zip(pairs, slots, strict=True):
        if line.strip() and cell_len(line) + slot > width:
            lines.append(line.rstrip())
            line = "  "
        if cell_len(line) + cell_len(pair) > width:
            lines += wrapped(pair, width, "  ", "    ")
        else:
            line += pair + " " * (slot - cell_len(pair) + _GAP)
    return [*lines, line.rstrip()] if line.strip() else lines
