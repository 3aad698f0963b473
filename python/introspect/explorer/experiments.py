"""Runs opened in place: what came out, every cell, and a cell's conversation, texts, lens and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from .fields import Refused, is_number
from .json_text import Json
from .security import REPORT_POLICY
from .workspace import Workspace

MOST_ROWS = 200_000
CELL = ("concept", "strength", "first_layer", "last_layer", "kind", "question", "question_kind")
STORE_COLUMNS = ("protocol", *CELL, "log_odds_base", "log_odds", "p_yes", "model", "written")
NUMBERS = ("log_odds", "p_yes", "p_no")
SHOWN = ("lens", "attention", "tokens", "raised", "lowered", "text", "answers", "continuations", "projections")


class Runs:
    """Run folders, single results and stores by name, read when they are first asked for."""

    def __init__(self, space: Workspace) -> None:
        self._space = space
        self._results: dict[str, list[Any]] = {}

    def path(self, name: str) -> Path:
        if name not in self._space.runs:
            raise Refused(f"there is no run {name[:80]!r}", 404)
        return self._space.runs[name]

    def results(self, name: str) -> list[Any]:
        """The Results of a run; of a lone store there are none."""
        if name not in self._results:
            path = self.path(name)
            if path.is_dir():
                from ..report import load_folder

                self._results[name] = load_folder(path)
            elif path.suffix == ".json":
                from ..experiments.results import Result

                self._results[name] = [Result.load(path)]
            else:
                self._results[name] = []
        return self._results[name]

    def summary(self, name: str) -> dict[str, Any]:
        results = self.results(name)
        if not results:
            return self._store(name)
        from ..report import summary
        from ..report.page import describe, heading, section_names, settings
        from ..report.page_verdict import judged, overall
        from ..report.sections import sections

        one = overall(results)
        listed = []
        for result, part, called in zip(results, sections(results), section_names(results), strict=True):
            word = {"word": part["verdict"].word, "sentence": part["verdict"].sentence} if judged(result) else None
            listed.append(
                {
                    "name": called,
                    "description": describe(result),
                    "read": result.protocol["read"],
                    "verdict": word,
                    "tables": [{"header": t.header, "rows": t.rows, "legend": t.legend} for t in part["tables"]],
                    "sentences": part["verdicts"],
                    "warnings": part["warnings"],
                    "settings": settings(result),
                    "cells": self._cells(result),
                    "unit": result.unit,
                }
            )
        return {
            "heading": heading(results),
            "verdict": {"word": one.word, "sentence": one.sentence, "reasons": list(one.reasons)},
            "summary": summary(results),
            "model": results[0].model,
            "protocols": listed,
            "report": True,
        }

    def _store(self, name: str) -> dict[str, Any]:
        from .. import Store

        store = Store(self.path(name), read_only=True)
        info = store.info()
        table = store.to_pandas().head(MOST_ROWS)
        shown = [key for key in STORE_COLUMNS if key in table]
        return {
            "heading": f"Readings of {Path(info['path']).name}",
            "store": {key: info[key] for key in ("cells", "bytes", "problems", "runs")},
            "columns": shown,
            "rows": table[shown].astype(object).where(table[shown].notna(), None).values.tolist(),
            "protocols": [],
        }

    @staticmethod
    def _cells(result: Any) -> dict[str, Any]:
        """Every reading in a few columns; what else it holds is asked for one by one."""
        rows = result.rows[:MOST_ROWS]
        columns: dict[str, list[Any]] = {key: [row.get(key) for row in rows] for key in CELL}
        for key in NUMBERS:
            for side in ("base", "injected"):
                columns[f"{key}_{side}"] = [_finite(row[side].get(key)) for row in rows]
        held = [[key for key in SHOWN if row["injected"].get(key)] for row in rows]
        return {"columns": columns, "held": held, "n": len(rows), "of": len(result.rows)}

    def cell(self, name: str, protocol: str, number: int) -> dict[str, Any]:
        from ..report.page import conversation, section_names

        results = self.results(name)
        names = section_names(results)
        if protocol not in names:
            raise Refused(f"there is no protocol {protocol[:80]!r} in this run", 404)
        result = results[names.index(protocol)]
        if not 0 <= number < len(result.rows):
            raise Refused(f"there is no reading {number}: 0 to {len(result.rows) - 1}", 404)
        row = result.rows[number]
        sides = {
            side: {key: row[side].get(key) for key in (*NUMBERS, *SHOWN) if row[side].get(key) is not None}
            for side in ("base", "injected")
        }
        return {
            "setting": {key: row.get(key) for key in CELL},
            "label": result.label(_setting(row)),
            "conversation": conversation(result),
            "yes": result.protocol["yes_token"],
            "no": result.protocol["no_token"],
            **sides,
        }

    def report(self, name: str) -> str:
        """The report page, made anew where the folder does not hold one."""
        from .. import report

        results = self.results(name)
        if not results:
            raise Refused("a store alone has no report: open the folder of its run", 404)
        return report.html(results, dict.fromkeys(report.drawings(results), b""))


def _setting(row: dict[str, Any]) -> Any:
    from ..experiments.results import setting_of

    return setting_of(row)


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def routes(space: Workspace) -> list[Route]:
    runs = Runs(space)

    async def run(request: Request) -> Json:
        return Json(await run_in_threadpool(runs.summary, request.path_params["name"]))

    async def cell(request: Request) -> Json:
        given = request.path_params
        return Json(await run_in_threadpool(runs.cell, given["name"], given["protocol"], given["number"]))

    async def report(request: Request) -> Response:
        name = request.path_params["name"]
        path = runs.path(name)
        page = path / "report.html" if path.is_dir() else path
        headers = {"content-security-policy": REPORT_POLICY}
        if page.name == "report.html" and page.is_file() and not page.is_symlink():
            return FileResponse(page, media_type="text/html", headers=headers)
        return HTMLResponse(await run_in_threadpool(runs.report, name), headers=headers)

    return [
        Route("/api/run/{name}", run),
        Route("/api/run/{name}/{protocol}/{number:int}", cell),
        Route("/run/{name}/report", report),
    ]
