"""A run folder as something to read: tables in the terminal, JSON, CSV, PNG plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._C import write_atomically
from .data import FOLDER as DATA
from .results import SCHEMA, Result, finite, write_text
from .sentences import (
    TEXT_NAMES,
    detection_verdict,
    identification_verdict,
    sections,
    summary,
    sweep_verdict,
    texts,
)
from .sweeps import headlines, is_sweep, sweep_bests

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console

# The order in which the article asks; protocols of one's own come after these.
ORDER = ["no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report", "top_of_mind"]
DPI = 150
READ = ("identified", "lens", "attention", "localised")  # of plots
SWEPT = ("strength_curves", "layer_curves", "range_maps")  # functions of plots, and of plots.interactive
METHOD = (
    "The messages that a protocol marks are prefilled with the concept's direction added to the output of each "
    "steered block, so the concept enters the KV cache; the steering then stops and the rest of the conversation is "
    "prefilled on that cache. The number read is the log-odds logit(‘{yes}’) − logit(‘{no}’) of the next token, in "
    "nats, computed in float32 from the last residual whatever dtype the model runs in ({dtype} here). A shift is the "
    "injected reading minus the same reading without steering. Control questions have a plain answer of no: a shift "
    "that they share is a bias towards yes and no sign of noticing, so their mean is subtracted. Each concept stands "
    "beside {nulls} random rotations of its own vector, which keep the norm of every layer's direction and the cosines "
    "between layers. What is inside their range is not told apart from a random direction."
)


def load_folder(folder: str | os.PathLike) -> list[Result]:
    """The results in a run folder, in the order of the article.

    Raises:
        FileNotFoundError: the folder is not there or holds no result.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.glob("*.json")) if path.name != "report.json"]
    if not files:
        raise FileNotFoundError(f"report: {folder} holds no results (<protocol>.json, written by introspect run)")
    results = [Result.load(path) for path in files]

    def place(result: Result) -> tuple[int, str]:
        name = result.protocol["name"]
        return (ORDER.index(name) if name in ORDER else len(ORDER), name)

    return sorted(results, key=place)


def write(folder: str | os.PathLike, *, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Write report.json, report.csv, the plots (PNG and SVG) and report.html into a run folder; the page's path.

    Args:
        progress: called with (what, done, total).

    Raises:
        FileNotFoundError: the folder is not there or holds no result.
        ValueError: a file is damaged, or the results are of several models.
    """
    from matplotlib import rc_context

    folder = Path(folder)
    results = load_folder(folder)
    if len(models := {result.model["name"] for result in results}) > 1:
        raise ValueError(f"report: {folder} holds results of several models ({', '.join(sorted(models))})")
    write_text(folder / "report.json", json.dumps(as_dict(results), indent=1, ensure_ascii=False, allow_nan=False))
    write_text(folder / "report.csv", table(results).to_csv(index=False))
    pictures: dict[str, bytes] = {}
    drawn = figures(results)
    for name, figure in drawn.items():
        if progress:
            progress("plots", len(pictures), len(drawn))
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        with rc_context({"svg.hashsalt": name}):  # equal results, equal bytes
            figure.savefig(svg, format="svg", metadata={"Date": None})
        pictures[name] = png.getvalue()
        write_atomically(folder / f"{name}.png", pictures[name])
        write_atomically(folder / f"{name}.svg", svg.getvalue())
    page = folder / "report.html"
    write_text(page, html(results, pictures))
    return page


def table(results: list[Result]) -> pandas.DataFrame:
    """Every reading of every protocol: Result.to_pandas with the model and the protocol in front."""
    import pandas

    frames = []
    for result in results:
        frame = result.to_pandas()
        frame.insert(0, "protocol", result.protocol["name"])
        frame.insert(0, "model", result.model["name"])
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def figures(results: list[Result]) -> dict[str, Figure]:
    """File name without suffix -> figure: "overview", a protocol's name, or that with what is drawn of it."""
    from . import plots  # here, because matplotlib takes half a second

    found = {"overview": plots.overview(results)}
    for result in results:
        name, read = result.protocol["name"], result.protocol["read"]
        if not is_sweep(result) and read == "yes_no":
            found[name] = plots.shifts(result)
        elif not is_sweep(result) and read == "content":
            found[name] = plots.content(result)
        if read == "yes_no":
            for suffix in SWEPT:
                found[f"{name}_{suffix}"] = getattr(plots, suffix)(result)
        for suffix in READ:
            found[f"{name}_{suffix}"] = getattr(plots, suffix)(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def interactive_figures(results: list[Result]) -> dict[str, Any]:
    """Those of `figures` that have a plotly twin."""
    from .plots import interactive

    found = {"overview": interactive.overview(results)}
    for result in results:
        if result.protocol["read"] == "yes_no":
            for suffix in SWEPT:
                found[f"{result.protocol['name']}_{suffix}"] = getattr(interactive, suffix)(result)
        for suffix in ("lens", "attention"):
            found[f"{result.protocol['name']}_{suffix}"] = getattr(interactive, suffix)(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def as_dict(results: list[Result]) -> dict[str, Any]:
    """The statistics and sentences of the report, ready for JSON."""
    listed = [_protocol_dict(result) for result in results]
    return finite({"schema": SCHEMA, "summary": summary(results), "protocols": listed})


def _protocol_dict(result: Result) -> dict[str, Any]:
    listed: dict[str, Any] = {"model": result.model, "protocol": result.protocol, "settings": result.settings}
    if result.protocol["read"] == "yes_no":
        listed["detections"] = [
            {
                **d.setting._asdict(),
                "log_odds_base": d.base,
                "log_odds": d.injected,
                "p_yes_base": d.p_yes_base,
                "p_yes": d.p_yes,
                "shift": d.shift.as_dict(),
                "n_controls": d.n_controls,
                "control_mean": d.control_mean.as_dict() if d.control_mean else None,
                "control_std": d.control_std,
                "corrected": d.corrected.as_dict() if d.corrected else None,
                "verdict": detection_verdict(d),
            }
            for d in result.detections()
        ]
    if is_sweep(result):
        listed["sweep"] = sweep_dict(result)
    if found := result.identifications():
        listed["identifications"] = [
            {
                **one.setting._asdict(),
                "token": one.token,
                "rank_base": one.rank_base,
                "rank": one.rank,
                "null_ranks": list(one.null_ranks),
                "gain": one.gain.as_dict(),
                "spaced_token": one.spaced_token,
                "spaced_rank_base": one.spaced_rank_base,
                "spaced_rank": one.spaced_rank,
                "spaced_gain": one.spaced_gain.as_dict(),
                "others_gain": one.others_gain,
                "verdict": identification_verdict(one),
            }
            for one in found
        ]
    if read := texts(result):
        listed["texts"] = read
    return listed


def sweep_dict(result: Result) -> dict[str, Any]:
    """The statistics of a sweep, ready for JSON."""
    concepts = {}
    bests = sweep_bests(result)
    for concept, listed in headlines(result).items():
        best = bests.get(concept)
        concepts[concept] = {
            "settings": len(listed),
            "best": {**best.setting._asdict(), "value": best.value, "place": best.place.as_dict()} if best else None,
            "verdict": sweep_verdict(result, concept),
        }
    return finite({"protocol": result.protocol["name"], "model": result.model["name"], "concepts": concepts})


def show(results: list[Result], console: Console | None = None) -> None:
    """Print every protocol's tables and sentences and the summary, to standard output if no console is given."""
    from rich.markup import escape

    console = console or _console()
    for result in results:
        show_one(result, console)
    console.print()
    for sentence in summary(results):
        console.print(f"[bold]{escape(sentence)}[/bold]", highlight=False)
    note = "Shifts and gains in nats. random: mean ± std of the same quantity over the random rotations."
    console.print(f"[dim]{note}[/dim]")


def show_one(result: Result, console: Console | None = None) -> None:
    """Print the tables and sentences of one protocol; of a sweep the most striking settings."""
    from rich.markup import escape
    from rich.table import Table

    console = console or _console()
    (section,) = sections([result])
    console.print(f"\n[bold]{escape(section['name'])}[/bold] · {escape(result.model['name'])}", highlight=False)
    if section["note"]:
        console.print(f"[dim]{escape(section['note'])}[/dim]", highlight=False)
    for header, rows in section["tables"]:
        shown = Table(box=None, padding=(0, 1), header_style="dim")
        for i, column in enumerate(header):
            shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            shown.add_row(*map(escape, row))
        console.print(shown, highlight=False)
    for verdict in section["verdicts"]:
        console.print(f"  {escape(verdict)}", highlight=False)
    for text in section["texts"]:
        console.print(f"  {escape(text['label'])}", highlight=False)
        for side, name in TEXT_NAMES.items():
            if text[side] is not None:
                one_line = text[side].replace("\n", "\\n")
                console.print(f"    {name + ':':<19}{escape(one_line)}", highlight=False)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def html(results: list[Result], pictures: dict[str, bytes]) -> str:
    """The page: styles, pictures and the library that draws are inside, nothing is fetched from anywhere."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    first = results[0]
    template = (DATA / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    interactive = interactive_figures(results)
    shown = [
        {
            "name": name,
            "png": base64.b64encode(png).decode("ascii"),
            # Texts of results stand in it: "<" must not end the script.
            "plotly": interactive[name].to_json().replace("<", "\\u003c") if name in interactive else "",
            "height": interactive[name].layout.height if name in interactive else 0,
        }
        for name, png in pictures.items()
    ]
    parts = sections(results)
    for part in parts:
        own = [part["name"], *(f"{part['name']}_{suffix}" for suffix in (*SWEPT, *READ))]
        part["figures"] = [figure for figure in shown if figure["name"] in own]
    return environment.from_string(template).render(
        model=first.model,
        settings=first.settings,
        method=METHOD.format(
            yes=first.protocol["yes_token"],
            no=first.protocol["no_token"],
            dtype=first.model["dtype"],
            nulls=first.settings["nulls"],
        ),
        summary=summary(results),
        overview=[figure for figure in shown if figure["name"] == "overview"],
        sections=parts,
        text_names=TEXT_NAMES,
        protocols=[result.protocol for result in results],
        has_sweep=any(map(is_sweep, results)),
        plotly=get_plotlyjs() if interactive else "",
    )
