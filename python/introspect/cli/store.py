"""``introspect store``: look into stores of finished readings, merge them, and write them as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..tables import FORMATS, check_format
from .common import Json, guarded, note, output_file, print_json
from .experiment import CELLS

SHOWN = 5  # conflicts and problems that are named

app = typer.Typer(help="Show, merge and export stores of finished readings.", no_args_is_help=True)

Source = Annotated[
    Path, typer.Argument(exists=True, metavar="STORE", help="A store's file, or the folder of a run or sweep.")
]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / CELLS).is_file():
        raise typer.BadParameter(f"there is no {CELLS} in {path}")
    return path / CELLS


@app.command()
@guarded
def info(source: Source, json: Json = False) -> None:
    """Say what a store holds and whether the file is sound."""
    import introspect

    facts = introspect.Store(_file(source), read_only=True).info()
    if json:
        print_json(facts)
        return
    problems = facts["problems"]
    sound = "DAMAGED" if problems else "sound"
    typer.echo(f"{facts['path']}: {facts['cells']:,} cells, {facts['bytes'] / 1e6:.1f} MB, {sound}")
    for problem in problems[:SHOWN]:
        typer.echo(f"  damaged: {problem}")
    if len(problems) > SHOWN:
        typer.echo(f"  ... and {len(problems) - SHOWN:,} more")
    for run in facts["runs"]:
        typer.echo(f"{run['cells']:>9,}  {run['protocol']} on {run['model']} ({run['model_hash'][:12]})")
        typer.echo(f"           {run['dtype']} on {run['device']}, seed {run['seed']}, strength {run['strength_unit']}")
        typer.echo(f"           introspect {run['introspect_version']}, torch {run['torch_version']}")
        typer.echo(f"           {run['first_written'][:19]} to {run['last_written'][:19]}")


@app.command()
@guarded
def export(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .csv file, or .parquet with pyarrow.")],
) -> None:
    """Write every reading as a table, with what made it.

    In CSV a text that a spreadsheet would run as a formula (= + - @) has an apostrophe before it.
    """
    output_file(output, FORMATS)
    check_format(output)
    import introspect

    introspect.Store(_file(source), read_only=True).export(output)
    typer.echo(output)


@app.command()
@guarded
def merge(
    target: Annotated[Path, typer.Argument(metavar="INTO", help="A store's file; made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(exists=True, metavar="STORE...", help="Stores, or their folders.")],
    json: Json = False,
) -> None:
    """Take over the cells of other stores, as of several machines. Of two values for one key the first stays."""
    files = [_file(source) for source in sources]
    import introspect
    from introspect.experiments.store import difference

    into = introspect.Store(_file(target) if target.is_dir() else target)
    report = []
    for file in files:
        merged = into.merge(file)
        differences = [difference(conflict) for conflict in merged.conflicts]
        report.append(
            {
                "path": str(file),
                "added": merged.added,
                "same": merged.same,
                "conflicts": [c.key for c in merged.conflicts],
                "damaged": merged.damaged,
                "largest_difference": max(differences, default=0.0),
            }
        )
        if json:
            continue
        typer.echo(f"{file}: {merged.added:,} cells added, {merged.same:,} here before")
        if merged.damaged:
            note(f"introspect: {file}: {merged.damaged:,} damaged cells are left out")
        if differences:
            note(
                f"introspect: {file}: {len(differences):,} cells have other values than those kept here, by "
                f"{max(differences):.2g} at most: "
                + ", ".join(c.key[:12] for c in merged.conflicts[:SHOWN])
                + (", ..." if len(differences) > SHOWN else "")
            )
    if json:
        print_json({"path": str(into.path), "cells": len(into), "merged": report})


@app.command()
@guarded
def vacuum(source: Source) -> None:
    """Give unused space of a store back to the file system."""
    import introspect

    store = introspect.Store(_file(source))
    before = store.info()["bytes"]
    store.vacuum()
    typer.echo(f"{store.path}: {before / 1e6:.1f} MB before, {store.info()['bytes'] / 1e6:.1f} MB now")
