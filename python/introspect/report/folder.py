"""A run folder as something to read: tables in the terminal, JSON, CSV, PNG plots and one self-contained HTML page."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experiments.detections import failed
from ..experiments.readouts import PLOTS, VIEWS, fields_by_layer
from ..experiments.results import SCHEMA, Compared, Result, finite, write_text
from ..experiments.runs import load_results
from ..experiments.sweeps import headlines, is_sweep, sweep_bests
from ..output_files import check_file_name, write_bytes
from ..tables import print_lines, print_table, wrapped, write_table
from .page import describe, section_names
from .page import html as page_html
from .page_verdict import judged, overall
from .sections import difference_interval, sections
from .sentences import TEXT_NAMES, detection_verdict, identification_verdict, summary, sweep_verdict, texts
from .verdicts import Verdict

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console

    from ..plots.panels import Drawing

__all__ = [
    "as_dict",
    "detection_verdict",
    "drawings",
    "figures",
    "html",
    "load_folder",
    "show",
    "show_one",
    "summary",
    "sweep_dict",
    "sweep_verdict",
    "table",
    "write",
]

# The order in which the article asks; protocols of one's own come after these.
ORDER = ["no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report", "top_of_mind"]
DPI = 150
SWEPT = ("strength_curves", "layer_curves", "range_maps")  # functions of plots, and of plots.interactive
UNLIMITED = 160  # columns of a table that goes to a file


def load_folder(folder: str | os.PathLike) -> list[Result]:
    """The results in a run folder, in the order of the article; see ``runs.load_results``.

    Raises:
        FileNotFoundError: the folder is not there or holds no result.
        ValueError: a file is damaged.
    """
    results = load_results(folder)

    def order(result: Result) -> tuple[int, str]:
        name = result.protocol["name"]
        return (ORDER.index(name) if name in ORDER else len(ORDER), name)

    return sorted(results, key=order)


def write(folder: str | os.PathLike, *, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Write report.json, report.csv, the plots (PNG and SVG) and report.html into a run folder; the page's path.

    Args:
        progress: called with (what, done, total).

    Raises:
        FileNotFoundError: the folder is not there or holds no result.
        ValueError: a file is damaged, a protocol's name cannot be a file's, or the results are of several models.
        IoError: a file cannot be written; it names the file.
    """
    from matplotlib import rc_context

    folder = Path(folder)
    results = load_folder(folder)
    for result in results:
        check_file_name(result.protocol["name"], f"report: {folder}: the protocol's name")
    if len(models := {result.model["name"] for result in results}) > 1:
        raise ValueError(f"report: {folder} holds results of several models ({', '.join(sorted(models))})")
    write_text(folder / "report.json", json.dumps(as_dict(results), indent=1, ensure_ascii=False, allow_nan=False))
    write_table(table(results), folder / "report.csv")
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
        write_bytes(folder / f"{name}.png", pictures[name])
        write_bytes(folder / f"{name}.svg", svg.getvalue())
    path = folder / "report.html"
    write_text(path, html(results, pictures))
    return path


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
    from .. import plots  # here, because matplotlib takes half a second

    found = _drawn(results, lambda suffix: getattr(plots, suffix))
    for name, result in zip(section_names(results), results, strict=True):
        for field, view in VIEWS.items():
            if view.plot and (figure := view.plot(result)) is not None:
                found[f"{name}_{field}"] = figure
    return found


def drawings(results: list[Result]) -> dict[str, Drawing]:
    """The same for the page, drawn by plotly."""
    from ..plots import interactive

    return _drawn(results, lambda suffix: getattr(interactive, f"{suffix}_drawing"))


def _drawn(results: list[Result], function: Callable[[str], Callable[..., Any]]) -> dict[str, Any]:
    from ..plots import NothingToDraw

    found = {"overview": function("overview")(results)}
    for name, result in zip(section_names(results), results, strict=True):
        read = result.protocol["read"]
        if not is_sweep(result) and read == "yes_no":
            found[name] = function("shifts")(result)
        elif not is_sweep(result) and read == "content":
            found[name] = function("content")(result)
        for suffix in (*(SWEPT if read == "yes_no" else ()), *PLOTS.values()):
            of_three = {"least": 3} if suffix.endswith("curves") else {}
            try:
                found[f"{name}_{suffix}"] = function(suffix)(result, **of_three)
            except NothingToDraw:
                continue
        for field in fields_by_layer(result):
            found[f"{name}_{field}"] = function("by_layer")(result, field)
    return {name: figure for name, figure in found.items() if figure is not None}


def as_dict(results: list[Result]) -> dict[str, Any]:
    """The statistics and sentences of the report, ready for JSON."""
    listed = [_protocol_dict(result) for result in results]
    return finite(
        {
            "schema": SCHEMA,
            "verdict": _verdict_dict(overall(results)),
            "summary": summary(results),
            "protocols": listed,
        }
    )


def _verdict_dict(one: Verdict) -> dict[str, Any]:
    return {"word": one.word, "sentence": one.sentence, "reasons": list(one.reasons)}


def _compared_dict(compared: Compared) -> dict[str, Any]:
    """No rank of numbers that are not finite."""
    shown = compared.as_dict()
    return shown if compared.band or not compared.nulls else {**shown, "rank": None, "inside_null_range": None}


def _protocol_dict(result: Result) -> dict[str, Any]:
    listed: dict[str, Any] = {"model": result.model, "protocol": result.protocol, "settings": result.settings}
    listed |= {"readings": len(result.rows), "not_finite": sum(map(failed, result.rows))}
    if left := result.unfinished:
        listed["incomplete"] = {"done": left[0], "of": left[1]}
    if judged(result):
        listed["verdict"] = _verdict_dict(result.verdict())
    if result.protocol["read"] == "yes_no":
        listed["detections"] = []
        for d in result.detections():
            interval = difference_interval(d)
            listed["detections"].append(
                {
                    **d.setting._asdict(),
                    "log_odds_base": d.base,
                    "log_odds": d.injected,
                    "p_yes_base": d.p_yes_base,
                    "p_yes": d.p_yes,
                    "mass_base": d.mass_base,
                    "mass": d.mass,
                    "flagged": d.leaves_format,
                    "shift": _compared_dict(d.shift),
                    "n_controls": d.n_controls,
                    "control_mean": _compared_dict(d.control_mean) if d.control_mean else None,
                    "control_std": d.control_std,
                    "corrected": _compared_dict(d.corrected) if d.corrected else None,
                    "corrected_interval": list(interval),
                    "verdict": detection_verdict(d),
                }
            )
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
                "gain": _compared_dict(one.gain),
                "spaced_token": one.spaced_token,
                "spaced_rank_base": one.spaced_rank_base,
                "spaced_rank": one.spaced_rank,
                "spaced_gain": _compared_dict(one.spaced_gain),
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
            "best": best and {**best.setting._asdict(), "value": best.value, "place": _compared_dict(best.place)},
            "verdict": sweep_verdict(result, concept),
        }
    return finite({"protocol": result.protocol["name"], "model": result.model["name"], "concepts": concepts})


def show(results: list[Result], console: Console | None = None) -> None:
    """Print what came out, then every protocol's tables and sentences, to standard output if no console is given."""
    console = console or _console()
    for result in results:
        show_one(result, console)
    one = overall(results)
    console.print()
    print_lines(console, [f"{one.word.capitalize()}."], "bold")
    for sentence in (one.sentence, *one.reasons, *summary(results)):
        print_lines(console, wrapped(sentence, console.width))


def show_one(result: Result, console: Console | None = None) -> None:
    """Print the verdict, tables and sentences of one protocol; of a sweep the settings with the largest effects."""
    console = console or _console()
    (section,) = sections([result])

    def say(text: str, indent: str = "", style: str = "") -> None:
        print_lines(console, wrapped(text, console.width, indent, indent + "  " if indent else None), style)

    console.print()
    say(f"{section['name']} · {result.model['name']}", style="bold")
    say(describe(result), style="dim")
    if judged(result):
        say(f"{section['verdict'].word.capitalize()}. {section['verdict'].sentence}")
    for warning in section["warnings"]:
        say(f"! {warning}", style="bold")
    if section["note"]:
        say(section["note"], style="dim")
    for one in section["tables"]:
        console.print()
        print_table(console, one.header, one.rows)
        console.print()
    for sentence in section["verdicts"]:
        say(sentence, "  ")
    for text in section["texts"]:
        say(text["label"], "  ")
        for side, name in TEXT_NAMES.items():
            if text[side] is not None:
                say(f"{name}: {text[side]!r}", "    ")
        if text["broken"]:
            say("The text repeats itself, and without injection it does not: this strength breaks it.", "    ")


def _console() -> Console:
    from rich.console import Console

    # Of a pipe or a file nobody knows the width, unless COLUMNS says it.
    given = os.environ.get("COLUMNS", "")
    return Console(width=None if sys.stdout.isatty() or given.isdecimal() else UNLIMITED)


def html(results: list[Result], pictures: dict[str, bytes]) -> str:
    """The page: styles, pictures and the library that draws are inside, nothing is fetched from anywhere."""
    return page_html(results, pictures, drawings(results))
