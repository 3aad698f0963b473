"""The commands, and the options that belong to none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import generate, info, pull, report, run, store, sweep, train, vector

app = typer.Typer(
    name="introspect",
    help="Control vectors and KV-cache introspection experiments on chat models.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (pull, info, generate, train, run, sweep, report):
    app.command(name=command.__name__.rpartition(".")[2])(command.command)
app.add_typer(vector.app, name="vector")
app.add_typer(store.app, name="store")


def _version(asked: bool) -> None:
    if asked:
        import introspect

        typer.echo(f"introspect {introspect.__version__}")
        raise typer.Exit


def _cmake_prefix(asked: bool) -> None:
    if asked:
        typer.echo(Path(__file__).parents[1])
        raise typer.Exit


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
