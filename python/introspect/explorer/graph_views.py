"""Routes of the page's view of attribution graphs."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import graph_changes, graphs
from .fields import Refused
from .json_text import Json, dumps
from .model_views import body
from .session import Session
from .worker import Job, Worker
from .workspace import Workspace

KEPT = 3  # graphs in memory
MOST_CHANGES = 200


class OpenGraphs:
    """Graph files by name, read when they are first asked for."""

    def __init__(self, space: Workspace) -> None:
        self._space = space
        self._open: OrderedDict[str, tuple[graphs.GraphData, graphs.Scores]] = OrderedDict()

    def path(self, name: str) -> Path:
        if name not in self._space.graphs:
            raise Refused(f"there is no graph {name[:80]!r}", 404)
        return self._space.graphs[name]

    def get(self, name: str) -> tuple[graphs.GraphData, graphs.Scores]:
        if name not in self._open:
            graph = graphs.load(self.path(name))
            self._open[name] = graph, graphs.scores(graph)
            while len(self._open) > KEPT:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]


def _place(graph: graphs.GraphData, node: str) -> int:
    try:
        return graph.ids.index(node)
    except ValueError:
        raise Refused(f"there is no node {node[:80]!r} in this graph", 404) from None


def routes(space: Workspace, session: Session | None, dictionaries: Any, worker: Worker) -> list[Route]:
    opened = OpenGraphs(space)

    async def graph(request: Request) -> Response:
        name = request.path_params["name"]

        def written() -> str:
            return dumps({**graphs.columns(*opened.get(name)), "has_pages": name in space.features})

        text = await run_in_threadpool(written)
        return Response(text, media_type="application/json")

    async def original(request: Request) -> Response:
        """The file itself with the page's pins and supernodes in it, for other tools."""
        name, fields = request.path_params["name"], await body(request)
        params = {
            "pinnedIds": fields.texts("pinnedIds", graphs.MOST_NODES, []),
            "supernodes": [one for one in fields.sequence("supernodes", 1_000, []) if isinstance(one, list)],
            "clickedId": fields.text("clickedId", "", 200),
            "linkType": "both",
        }

        def written() -> str:
            data = json.loads(graphs.text_of(opened.path(name)))
            old = data.get("qParams") if isinstance(data.get("qParams"), dict) else {}
            data["qParams"] = {**old, **params}
            return json.dumps(data, ensure_ascii=False)

        text = await run_in_threadpool(written)
        return Response(
            text, media_type="application/json", headers={"content-disposition": "attachment; filename=graph.json"}
        )

    async def change(request: Request) -> Json:
        """Predicted changes of logits and of the nodes that change most; with "measure", measured ones beside them."""
        name, fields = request.path_params["name"], await body(request)
        found, _ = await run_in_threadpool(opened.get, name)
        factors = {
            _place(found, one.text("node", most=200)): one.number("factor", -100, 100)
            for one in fields.objects("changes", MOST_CHANGES)
        }
        if not factors:
            raise Refused("no change was given: choose nodes and factors")
        predicted = await run_in_threadpool(graphs.predict, found, factors)
        answer = graph_changes.as_rows(found, predicted, factors)
        if fields.flag("measure"):
            measured = await worker.run(
                request, lambda job: graph_changes.measure(found, factors, session, dictionaries, job)
            )
            answer = graph_changes.with_measured(answer, measured)
        return Json(answer)

    async def why(request: Request) -> Json:
        """Why a head attends from one position to another, computed in the open model."""
        name, fields = request.path_params["name"], await body(request)
        found, _ = await run_in_threadpool(opened.get, name)
        return Json(
            await worker.run(request, lambda job: graph_changes.why_attended(found, session, dictionaries, fields, job))
        )

    async def heads(request: Request) -> Json:
        """Which heads carry a link between two nodes."""
        name, fields = request.path_params["name"], await body(request)
        found, _ = await run_in_threadpool(opened.get, name)
        source, target = (_place(found, fields.text(end, most=200)) for end in ("source", "target"))

        def work(job: Job) -> dict[str, Any]:
            return graph_changes.heads_between(found, source, target, session, dictionaries, job)

        return Json(await worker.run(request, work))

    async def feature(request: Request) -> Json:
        """The page of a feature that came with the graph's set."""
        given = request.path_params
        found, _ = await run_in_threadpool(opened.get, given["name"])
        folder = space.features.get(given["name"])
        if folder is None:
            raise Refused("no features came with this graph", 404)
        scan = found.metadata.get("scan", "")
        return Json(await run_in_threadpool(folder.card, given["layer"], given["index"], scan))

    return [
        Route("/api/graph/{name}/change", change, methods=["POST"]),
        Route("/api/graph/{name}/why", why, methods=["POST"]),
        Route("/api/graph/{name}/heads", heads, methods=["POST"]),
        Route("/api/graph/{name}/feature/{layer:int}/{index:int}", feature),
        Route("/api/graph/{name}/file", original, methods=["POST"]),
        Route("/api/graph/{name}", graph),
    ]
