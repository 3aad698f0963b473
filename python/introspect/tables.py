"""Tables of results as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

FORMATS = (".csv", ".parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the beginnings of a formula, by OWASP's list


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

    Spreadsheets run a text that begins with = + - @ as a formula, so CSV has an apostrophe before it. Numbers are
    written as they are, and Parquet holds every text as it is.

    Raises:
        ValueError: the suffix is neither .csv nor .parquet.
        ImportError: Parquet without pyarrow.
    """
    path = check_format(path)
    part = path.with_name(path.name + ".part")
    if path.suffix == ".parquet":
        frame.to_parquet(part, engine="pyarrow", index=False)
    else:
        without_formulas(frame).to_csv(part, index=False)
    part.replace(path)


def without_formulas(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The same table with an apostrophe before texts that a spreadsheet would run."""

    def cell(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    return frame.apply(lambda column: column.map(cell) if column.dtype.kind not in "biufcmM" else column)
