"""``introspect report``: a run folder as tables, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import report
from ..progress import step_bars
from .common import Json, guarded, note, print_json


@guarded
def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A folder that introspect run wrote.")
    ],
    json: Json = False,
) -> None:
    """Print the tables of a run and write report.html, report.json, report.csv and the plots into its folder."""
    with step_bars() as step:
        page = report.write(folder, progress=step)
    results = report.load_folder(folder)
    if json:
        print_json(report.as_dict(results))
        return
    report.show(results)
    note(f"\nwrote {page}")
