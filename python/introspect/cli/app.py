"""The commands, and the options that belong to none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from . import (
    dose,
    explore,
    generate,
    graph,
    heads,
    info,
    lens,
    patch,
    probe,
    profile,
    pull,
    replicate,
    report,
    run,
    sae,
    store,
    study,
    sweep,
    train,
    vector,
)

app = typer.Typer(
    name="introspect",
    help="Control vectors and KV-cache introspection experiments on chat models.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RUNS = (dose, run, sweep, study, replicate)
for command in (pull, info, profile, lens, patch, heads, probe, generate, train, *RUNS, report, explore):
    app.command(name=command.__name__.rpartition(".")[2])(command.command)
app.add_typer(vector.app, name="vector")
app.add_typer(store.app, name="store")
app.add_typer(sae.app, name="sae")
app.add_typer(graph.app, name="graph")


def _version(asked: bool) -> None:
    if asked:
        import introspect

        typer.echo(f"introspect {introspect.__version__}")
        raise typer.Exit


CONFIG = "introspect-config.cmake"


def _cmake_prefix(asked: bool) -> None:
    if not asked:
        return
    prefixes = list(_prefixes())
    for prefix in prefixes:
        if any(prefix.glob(f"lib*/cmake/introspect/{CONFIG}")):
            typer.echo(prefix)
            raise typer.Exit
    looked_in = ", ".join(map(str, prefixes))
    typer.echo(f"introspect: there is no {CONFIG} in {looked_in}: install introspect with pip", err=True)
    raise typer.Exit(1)


def _prefixes() -> Iterator[Path]:
    """Where pip may have put the compiled parts: an editable install leaves only the sources where this file is."""
    spec = importlib.util.find_spec("introspect._C")
    if spec and spec.origin:
        yield Path(spec.origin).parent
    yield Path(__file__).parents[1]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    cmake_prefix: Annotated[
        bool,
        typer.Option(
            "--cmake-prefix", callback=_cmake_prefix, is_eager=True, help="Print the folder for CMAKE_PREFIX_PATH."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console command."""
    app(prog_name="introspect")
