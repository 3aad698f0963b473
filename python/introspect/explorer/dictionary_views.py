"""Routes of the page's view of dictionaries."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from .dictionaries import MOST_FEATURES, Dictionaries
from .fields import Fields, Refused
from .json_text import Json
from .model_views import body
from .worker import Worker

ORDERS = ("max_active", "frequencies", "mean_active", "counts")
NO_DICTIONARY = "no dictionary was opened: introspect explore DIR, or --sae DIR beside a model"


def routes(session: Any, dictionaries: Dictionaries | None, worker: Worker) -> list[Route]:
    def needed() -> Dictionaries:
        if dictionaries is None:
            raise Refused(NO_DICTIONARY, 409)
        return dictionaries

    async def info(request: Request) -> Json:
        name = request.path_params["name"]
        return Json(await worker.run(request, lambda job: needed().info(name)))

    async def card(request: Request) -> Json:
        given = request.path_params
        return Json(await worker.run(request, lambda job: needed().card(given["name"], given["index"])))

    async def activations(request: Request) -> Json:
        name, fields = request.path_params["name"], await body(request)
        return Json(await worker.run(request, lambda job: _activations(needed(), name, fields)))

    async def label(request: Request) -> Json:
        name, fields = request.path_params["name"], await body(request)
        index, text = fields.integer("index", 0, 1 << 40), fields.text("label", most=2_000)

        def write() -> None:
            needed().check_feature(name, index)
            needed().labels(name).set(index, text)

        await worker.run(request, lambda job: write())
        return Json({"index": index, "label": text.strip(), "file": needed().labels(name).path.name})

    async def find(request: Request) -> Json:
        name, fields = request.path_params["name"], await body(request)
        words, by = fields.text("words", "", 500), fields.choice("by", ORDERS, "max_active")
        if words.strip():
            found = needed().labels(name).find(words, MOST_FEATURES)
            return Json({"features": [{"index": index, "label": text} for index, text in found]})
        return Json({"features": await worker.run(request, lambda job: needed().listed(name, by, 60))})

    async def cache(request: Request) -> Any:
        """Builds the token cache that feature pages come from; progress is streamed."""
        name = request.path_params["name"]
        return worker.stream(request, lambda job: needed().build_pages(name, job))

    prefix = "/api/dictionary/{name}"
    return [
        Route(prefix, info),
        Route(prefix + "/feature/{index:int}", card),
        Route(prefix + "/activations", activations, methods=["POST"]),
        Route(prefix + "/label", label, methods=["POST"]),
        Route(prefix + "/find", find, methods=["POST"]),
        Route(prefix + "/cache", cache, methods=["POST"]),
    ]


def _activations(dictionaries: Dictionaries, name: str, fields: Fields) -> dict[str, Any]:
    """The features of a text, or the values of one."""
    session = dictionaries.session()
    tokens = session.tokens(fields)
    shown = session.shown(tokens[0])
    index = fields.integer("index", 0, 1 << 40, None)
    if index is not None:
        return {"tokens": shown, "values": dictionaries.values(name, tokens, index)}
    position = fields.integer("position", 0, len(shown) - 1, None)
    most = fields.integer("most", 1, MOST_FEATURES, 30)
    return {"tokens": shown, "features": dictionaries.active(name, tokens, position=position, most=most)}
