"""``introspect pull``: get a model."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import hub
from ..data import model_registry
from .common import Json, guarded, note, print_json


@guarded
def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A short name or a hub id (owner/name). None: list them."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the short names instead.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model from the first source that answers, check it by SHA-256 and print where it is.

    Without a NAME nothing is fetched: the short names are listed with their sizes.
    """
    if show_list or name is None:
        _list(json)
        if name is None and not show_list:
            note(f"\nintrospect pull NAME fetches one of them, such as {hub.DEFAULT_MODEL}")
        return
    path = hub.pull(name, say=lambda sentence: note(f"introspect: {sentence}; trying the next source"))
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        typer.echo(path)


def _list(json: bool) -> None:
    folder = hub.models_folder()
    models = [
        {"name": name, "file": entry["file"], "bytes": entry["bytes"], "here": (folder / entry["file"]).exists()}
        for name, entry in model_registry().items()
    ]
    if json:
        print_json(models)
        return
    for model in models:
        size = f"{model['bytes'] / 1e6:,.0f} MB" if model["bytes"] else ""
        default = "the default" if model["name"] == hub.DEFAULT_MODEL else ""
        typer.echo(f"{model['name']:30}{size:>10}  {'here' if model['here'] else '':6}{default}".rstrip())
