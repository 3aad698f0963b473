"""Files that commands of the toolbox write: a picture, a table or a page, told apart by their suffix."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output_files import write_bytes, write_text
from ..tables import FORMATS, write_table
from .common import note, output_file

if TYPE_CHECKING:
    import pandas as pd

PICTURES = (".png", ".svg", ".pdf")
PAGES = (".html",)
OutputOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--output", "-o", metavar="F", help="A picture (.png, .svg, .pdf), table (.csv, .parquet) or page (.html)."
    ),
]


def output_files(paths: Sequence[Path] | None, others: tuple[str, ...] = ()) -> list[Path]:
    """The paths, once it is clear that each can be written and what it is to be; others: further suffixes."""
    return [output_file(path, PICTURES + FORMATS + PAGES + others) for path in paths or []]


def write_outputs(
    paths: Sequence[Path],
    title: str,
    table: Callable[[], pd.DataFrame],
    figures: Callable[[], dict[str, Any]],
    lines: Sequence[str] = (),
) -> None:
    """Writes each file.

    Args:
        table, figures: what makes them, called only where a file needs one; of several figures a picture file gets the
            first, and further ones a name with the figure's key.
        lines: sentences at the head of a page.
    """
    for path in paths:
        if path.suffix in FORMATS:
            write_table(table(), path)
        elif path.suffix in PAGES:
            from ..report.table_page import table_page

            pictures = {name: drawn(figure, "png") for name, figure in figures().items()}
            write_text(path, table_page(title, lines, pictures, table()))
        else:
            for number, (name, figure) in enumerate(figures().items()):
                to = path if number == 0 else path.with_stem(f"{path.stem}_{name}")
                write_bytes(to, drawn(figure, path.suffix[1:]))
        note(f"wrote {path}")


def drawn(figure: Any, kind: str) -> bytes:
    """A figure as the bytes of a file."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150)
    return out.getvalue()
