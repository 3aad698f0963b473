"""The server: a page and its data on a loopback port, for one person."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from . import dictionary_views, experiments, graph_views, model_views, neuronpedia
from .fields import Refused
from .json_text import Json
from .security import Guard
from .session import Session
from .worker import Cancelled, Worker, sentence
from .workspace import Workspace

STATIC = Path(__file__).with_name("static")
HOST = "127.0.0.1"
PORT = 7741
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def bind(port: int) -> socket.socket:
    """A listening socket on the loopback address; port 0 is any free one.

    Raises:
        OSError: the port is taken, by another explorer or by something else; it says which.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere the option lets two servers have one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            who = "another introspect explore" if _is_ours(port) else "another program"
            raise OSError(
                f"explore: port {port} is taken by {who}. Give --port 0 for any free port, or end the other one first"
            ) from None
        raise OSError(f"explore: port {port} of {HOST} cannot be opened: {error.strerror}") from None
    return listener


def _is_ours(port: int) -> bool:
    request = f"GET /health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(request)
            return b"introspect explore" in b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return False


def build(space: Workspace, session: Session | None, *, token: str, port: int, dictionaries: Any = None) -> Any:
    """The ASGI application of a workspace, guarded; ``app.state.worker`` is the model's thread."""
    worker = Worker("model")
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in KINDS}

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    async def static(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such file")
        return FileResponse(path, media_type=KINDS[path.suffix])

    async def health(request: Request) -> Json:
        return Json({"status": "healthy", "server": "introspect explore"})

    async def contents(request: Request) -> Json:
        return Json(
            {
                "model": session.name if session else None,
                "dictionaries": list(space.dictionaries),
                "cross_layer": list(space.cross_layer),
                "graphs": list(space.graphs),
                "runs": list(space.runs),
                "vectors": list(space.vectors),
                "skipped": space.skipped,
            }
        )

    listed: Sequence[BaseRoute] = [
        Route("/", page),
        Route("/static/{name:path}", static),
        Route("/health", health),
        Route("/api/contents", contents),
        *model_views.routes(session, worker),
        *dictionary_views.routes(session, dictionaries, worker),
        *graph_views.routes(space, session, dictionaries, worker),
        *experiments.routes(space),
        *neuronpedia.routes(session, dictionaries, worker),
    ]
    app = Starlette(routes=listed, exception_handlers=_HANDLERS)
    app.state.worker = worker
    guarded = Guard(app, token=token, port=port)
    guarded.state = app.state  # type: ignore[attr-defined]
    return guarded


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, Cancelled):
        return Response(status_code=499)
    status = error.status if isinstance(error, Refused) else 400 if _is_callers(error) else 500
    return Json({"error": sentence(error)}, status)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": str(error.detail)}, error.status_code)


def _is_callers(error: Exception) -> bool:
    """Errors of the library that say what was wrong with the arguments."""
    return isinstance(error, IndexError | ValueError | OSError) or type(error).__module__.startswith("introspect")


_HANDLERS: Any = {
    HTTPException: _http,
    Refused: _failed,
    Cancelled: _failed,
    RuntimeError: _failed,
    ValueError: _failed,
    LookupError: _failed,
    OSError: _failed,
    TypeError: _failed,
    ImportError: _failed,
    MemoryError: _failed,
    Exception: _failed,  # a fault of ours: its sentence for the page, its traceback for the terminal
}


def serve(app: Any, listener: socket.socket, *, started: Callable[[], None] | None = None) -> None:
    """Answer requests until Ctrl-C; what still runs then is given up."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if started:
                started()

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=1, proxy_headers=False,
    )  # fmt: skip
    try:
        Server(config).run(sockets=[listener])
    finally:
        app.state.worker.stop()
