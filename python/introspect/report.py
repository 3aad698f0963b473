"""A run folder as something to read: tables in the terminal, JSON, CSV, PNG plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import FOLDER as DATA
from .results import SCHEMA, Compared, Detection, Identification, Result, finite, setting_of, write_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console

# The order in which the article asks; protocols of one's own come after these.
ORDER = ["no_info", "with_info", "inaccurate_location", "lorem_ipsum", "content_report", "top_of_mind"]
DPI = 150
TEXT_NAMES = {"base": "without", "injected": "with the concept", "random": "a random rotation"}

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
    """Write report.json, report.csv, the plots and report.html into a run folder, and return the page's path.

    Args:
        progress: called with (what, done, total).

    Raises:
        FileNotFoundError: the folder is not there or holds no result.
        ValueError: a file is damaged, or the results are of several models.
    """
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
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        pictures[name] = png.getvalue()
        (folder / f"{name}.png").write_bytes(pictures[name])
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
    """File name without suffix -> figure."""
    from . import plots  # here, because matplotlib takes half a second

    found = {"overview": plots.overview(results)}
    for result in results:
        if result.protocol["read"] == "yes_no":
            found[result.protocol["name"]] = plots.shifts(result)
        elif result.protocol["read"] == "content":
            found[result.protocol["name"]] = plots.content(result)
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


def texts(result: Result) -> list[dict[str, Any]]:
    """The sampled continuations: without anything, with each concept, and with the first random rotation of it."""
    listed = []
    for row in result.rows:
        if row["kind"] != "introspection" or row["injected"].get("text") is None:
            continue
        nulls = result.select(setting_of(row), kind="null", question_kind="introspection")
        random = next((null["injected"]["text"] for null in nulls if null["question"] == row["question"]), None)
        texts = {"base": row["base"]["text"], "injected": row["injected"]["text"], "random": random}
        listed.append({"concept": row["concept"], "label": result.label(setting_of(row)), **texts})
    return listed


def summary(results: list[Result]) -> list[str]:
    """How often concepts leave the range of their random rotations, beside how often chance alone does that."""
    detected = [d.headline for r in results if r.protocol["read"] == "yes_no" for d in r.detections()]
    identified = [one.gain for r in results for one in r.identifications()]
    sentences = []
    if places := _places(detected):
        sentences.append(f"Detection: the shift towards yes is {places}.")
    if places := _places(identified):
        sentences.append(f"Identification: the gain of the concept's own token is {places}.")
    return sentences


def _places(listed: list[Compared]) -> str:
    listed = [c for c in listed if c.nulls and math.isfinite(c.value) and all(map(math.isfinite, c.nulls))]
    if not listed:
        return ""
    above = sum(c.value > max(c.nulls) for c in listed)
    below = sum(c.value < min(c.nulls) for c in listed)
    chance = sum(1 / (len(c.nulls) + 1) for c in listed)
    places = f"above all random rotations in {above}, below all in {below} and inside their range in "
    inside = f"{len(listed) - above - below} of {len(listed)} settings"
    return places + f"{inside} (chance alone: {chance:.1f} above, {chance:.1f} below)"


def detection_verdict(detection: Detection) -> str:
    """One sentence that says no more than the nulls allow."""
    compared = detection.headline
    less = "the controls' mean subtracted" if detection.corrected else "no controls asked"
    moved = f"“{detection.setting.concept}” shifts the answer by {compared.value:+.2f} nats ({less})"
    return f"{moved}, {_against_nulls(compared)}"


def identification_verdict(one: Identification) -> str:
    """One sentence about the token of the concept in the content report."""
    moved = (
        f"goes from rank {one.rank_base:,} to {one.rank:,}" if one.rank != one.rank_base else f"stays at {one.rank:,}"
    )
    gain = f"its log-probability changes by {one.gain.value:+.2f} nats"
    return f"“{one.token}” {moved} and {gain}, {_against_nulls(one.gain)}"


def _against_nulls(compared: Compared) -> str:
    n = len(compared.nulls)
    if not math.isfinite(compared.value):
        return "which is no finite number: the model breaks at this strength."
    if n == 0:
        return "with no random directions beside it, which says nothing yet."
    if not all(map(math.isfinite, compared.nulls)):
        return "and random directions of this strength break the model, so there is no band to compare with."
    place = f"{ordinal(compared.rank)} of {n + 1}"
    if compared.inside:
        return f"which is inside the random band ({place}): not told apart from a random direction."
    side = "above" if compared.value > compared.null_mean else "below"
    everyone = "the one random direction" if n == 1 else f"all {n} random directions"
    return f"which is {side} {everyone} ({place}; chance alone does this once in {n + 1} times)."


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


# One definition of the tables' columns serves the terminal and the page.
def detection_table(result: Result) -> tuple[list[str], list[list[str]]]:
    header = ["injected", "log-odds", "p(yes)", "shift", "controls", "shift − controls", "random", "z", "place"]
    rows = []
    for d in result.detections():
        shown = d.headline
        rows.append(
            [
                result.label(d.setting),
                f"{d.base:+.2f} → {d.injected:+.2f}",
                f"{percent(d.p_yes_base)} → {percent(d.p_yes)}",
                f"{d.shift.value:+.2f}",
                f"{d.control_mean.value:+.2f} ± {d.control_std:.2f}" if d.control_mean else "–",
                f"{d.corrected.value:+.2f}" if d.corrected else "–",
                *_null_cells(shown),
            ]
        )
    return header, rows


def identification_table(result: Result) -> tuple[list[str], list[list[str]]]:
    header = [
        "injected",
        "token",
        "rank",
        "gain",
        "spaced rank",
        "spaced gain",
        "other concepts",
        "random",
        "z",
        "place",
    ]
    rows = [
        [
            result.label(one.setting),
            repr(one.token),
            f"{one.rank_base:,} → {one.rank:,}",
            f"{one.gain.value:+.2f}",
            f"{one.spaced_rank_base:,} → {one.spaced_rank:,}",
            f"{one.spaced_gain.value:+.2f}",
            "–" if math.isnan(one.others_gain) else f"{one.others_gain:+.2f}",
            *_null_cells(one.gain),
        ]
        for one in result.identifications()
    ]
    return header, rows


def _null_cells(compared: Compared) -> list[str]:
    if not compared.nulls:
        return ["–", "–", "–"]
    spread = "" if math.isnan(compared.null_std) else f" ± {compared.null_std:.2f}"
    z = "–" if math.isnan(compared.z) else f"{compared.z:+.1f}"
    place = f"{ordinal(compared.rank)} of {len(compared.nulls) + 1}" + (", inside" if compared.inside else "")
    return [f"{compared.null_mean:+.2f}{spread}", z, place]


def percent(p: float) -> str:
    if not math.isfinite(p):
        return "–"
    return f"{100 * p:.3g}%" if p >= 1e-5 else f"{100 * p:.1e}%"


def sections(results: list[Result]) -> list[dict[str, Any]]:
    """What a reader sees of each protocol: its tables, sentences and texts."""
    listed = []
    for result in results:
        read = result.protocol["read"]
        tables, verdicts = [], []
        if read == "yes_no":
            tables.append(detection_table(result))
            verdicts += [detection_verdict(d) for d in result.detections()]
        if found := result.identifications():
            tables.append(identification_table(result))
            verdicts += [identification_verdict(one) for one in found]
        listed.append({"name": result.protocol["name"], "tables": tables, "verdicts": verdicts, "texts": texts(result)})
    return listed


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
    """Print the tables and sentences of one protocol."""
    from rich.markup import escape
    from rich.table import Table

    console = console or _console()
    (section,) = sections([result])
    console.print(f"\n[bold]{escape(section['name'])}[/bold] · {escape(result.model['name'])}", highlight=False)
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
    """The page: styles and pictures inside, nothing fetched from anywhere."""
    from jinja2 import Environment

    first = results[0]
    template = (DATA / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
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
        sections=sections(results),
        text_names=TEXT_NAMES,
        protocols=[result.protocol for result in results],
        pictures={name: base64.b64encode(png).decode("ascii") for name, png in pictures.items()},
    )
