"""Routes of the page's view of a model at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from . import reading
from .fields import Fields, Refused
from .json_text import Json
from .session import Session
from .worker import Worker

Read = Callable[[Session, Fields, Any], Any]
READS: dict[str, Read] = {
    "tokens": lambda session, fields, job: reading.tokenized(session, fields),
    "lens": reading.lens,
    "logits": reading.logits,
    "heads": reading.heads,
    "attention": reading.attention,
    "point": reading.point,
}
NO_MODEL = "no model was opened: introspect explore MODEL, or --model MODEL beside what is opened"


async def body(request: Request) -> Fields:
    """The fields of a request's JSON. Raises Refused."""
    try:
        return Fields(await request.json())
    except (ValueError, RecursionError):
        raise Refused("the request must be JSON") from None


def needed(session: Session | None) -> Session:
    if session is None:
        raise Refused(NO_MODEL, 409)
    return session


def routes(session: Session | None, worker: Worker) -> list[Route]:
    def reading_route(read: Read) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Json:
            fields, model = await body(request), needed(session)
            return Json(await worker.run(request, lambda job: read(model, fields, job)))

        return answer

    async def generate(request: Request) -> Any:
        fields, model = await body(request), needed(session)
        return worker.stream(request, lambda job: reading.generate(model, fields, job))

    async def info(request: Request) -> Json:
        return Json(await worker.run(request, lambda job: needed(session).info()))

    listed = [Route(f"/api/model/{name}", reading_route(read), methods=["POST"]) for name, read in READS.items()]
    return [*listed, Route("/api/model/generate", generate, methods=["POST"]), Route("/api/model", info)]
