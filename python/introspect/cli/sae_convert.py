"""``introspect sae convert``: a dictionary's file in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import guarded


@guarded
def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file or folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="The folder to write.")],
) -> None:
    """Write a dictionary in the format of SAELens or circuit-tracer."""
    raise NotImplementedError(source, output)
