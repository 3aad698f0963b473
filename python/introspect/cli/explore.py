"""``introspect explore``: a local page in the browser."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import ChatTemplateOption, DeviceOption, Dtype, DtypeOption, guarded, load_model, note

if TYPE_CHECKING:
    from ..explorer.workspace import Workspace

NEEDED = 'explore: it needs Starlette and uvicorn ({}): pip install "introspect[explore]"'


@guarded
def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_MODEL", help="A model, an attribution graph, a dictionary, a run, or a folder of these."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model beside a graph, dictionary or run.")
    ] = None,
    sae: Annotated[
        list[Path] | None, typer.Option("--sae", exists=True, metavar="DIR", help="A dictionary; several times.")
    ] = None,
    graph: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, metavar="F", help="A graph's JSON; several times.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(exists=True, metavar="DIR", help="A run's folder or store; several times.")
    ] = None,
    vector: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, metavar="F", help="A control vector to steer with; several times."),
    ] = None,
    lens: Annotated[Path | None, typer.Option(exists=True, metavar="PATH", help="A tuned or Jacobian lens.")] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="F", help="Texts, one a line, that feature pages take examples from."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Pages of features that a graph's set came with; by default the folder features beside the graph.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 is any free one.")] = 7741,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    chat_template: ChatTemplateOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
) -> None:
    """Look at a model, dictionaries, attribution graphs and experiments in a page of this machine's browser.

    The server listens on 127.0.0.1 only, and the address that is printed holds a token that it asks for. Nothing is
    fetched from anywhere.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(NEEDED.format(error)) from None
    from ..explorer import workspace
    from ..explorer.security import new_token
    from ..explorer.server import HOST, bind, build, serve

    given: dict[str, Any] = {
        "dictionaries": sae or [],
        "graphs": graph or [],
        "runs": run or [],
        "vectors": vector or [],
    }
    space = workspace.find(what, model=model, lens=lens, texts=texts, features=features, **given)
    listener = bind(port)  # before the model is loaded, which takes a while
    session = dictionaries = None
    if space.dictionaries or space.cross_layer or space.model:
        from ..explorer.dictionaries import Dictionaries
        from ..explorer.session import Session

        if space.model:
            session = Session(load_model(space.model, dtype, device, chat_template), space)
        if space.dictionaries or space.cross_layer:
            dictionaries = Dictionaries(space, session)
        if session:
            session.dictionaries = dictionaries
    token, port = new_token(), listener.getsockname()[1]
    app = build(space, session, token=token, port=port, dictionaries=dictionaries)
    address = f"http://{HOST}:{port}/?token={token}"

    def started() -> None:
        note(_contents(space))
        note(f"\n  {address}\n")
        note("The address holds the page's token: it is for you alone. Ctrl-C ends.")
        if open_browser:
            webbrowser.open(address)

    with contextlib.suppress(KeyboardInterrupt):
        serve(app, listener, started=started)
    note("closed")


def _contents(space: Workspace) -> str:
    kinds = {
        "model": [space.model] if space.model else [],
        "dictionaries": list(space.dictionaries),
        "cross-layer transcoders": list(space.cross_layer),
        "graphs": list(space.graphs),
        "runs": list(space.runs),
        "vectors": list(space.vectors),
    }
    lines = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            lines.append(f"{kind}: {', '.join(names[:6])}{more}")
    return "\n".join([*lines, *space.skipped])
