"""Tables of results as files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ._C import write_atomically

if TYPE_CHECKING:
    import pandas

FORMATS = (".csv", ".parquet")


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
            raise ImportError("Parquet files need pyarrow: pip install 'introspect[parquet]'") from None
    return path


def write_table(frame: pandas.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as .csv or .parquet; the file is complete or as it was.

    Raises:
        ValueError: the suffix is neither .csv nor .parquet.
        ImportError: Parquet without pyarrow.
        IoError: the file cannot be written.
    """
    path = check_format(path)
    if path.suffix == ".parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, engine="pyarrow", index=False)
        write_atomically(path, buffer.getvalue())
    else:
        write_atomically(path, frame.to_csv(index=False).encode())
