"""``introspect report``: a run folder, a saved study or a replication as tables, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import report
from ..progress import step_bars
from .common import Json, guarded, note, print_json


@guarded
def command(
    found: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            exists=True,
            help="A folder that introspect run wrote, or the file of a study or of a replication.",
        ),
    ],
    json: Json = False,
) -> None:
    """Print what a run or a study shows, and write its page beside it.

    Of a run folder: report.html, report.json, report.csv and the plots. Of a study: its ladder of claims, and the page
    under the study's name. Of a replication: its verdict, figures and rungs.
    """
    from ..studies.files import is_replication, is_study  # here, because it loads torch

    if is_study(found):
        _study(found, json)
        return
    if found.is_file() and is_replication(found):
        _replication(found, json)
        return
    if found.is_file():
        raise typer.BadParameter(f"{found} is no folder of a run and no file of a study or a replication")
    with step_bars() as step:
        page = report.write(found, progress=step)
    results = report.load_folder(found)
    if json:
        print_json(report.as_dict(results))
        return
    report.show(results)
    note(f"\nwrote {page}")


def _study(path: Path, json: bool) -> None:
    from ..studies.study import Study  # here, because it loads torch

    study = Study.load(path)
    claims = study.claims()
    page = study.report(path.with_suffix(".html"))
    if json:
        print_json(claims.to_dict())
        return
    typer.echo(str(claims))
    note(f"\nwrote {page}")


def _replication(path: Path, json: bool) -> None:
    from ..studies import atlas  # here, because it loads torch

    ran = atlas.Replication.load(path)
    if json:
        print_json(ran.summary())
        return
    typer.echo(str(ran))
