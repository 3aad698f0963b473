"""The page of a run: what came out, the conversation, the settings, then tables and plots; nothing is fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import share_folder
from ..experiments.detections import blocks
from ..experiments.results import Result
from ..experiments.sweeps import is_random, is_sweep, random_direction
from .page_verdict import judged, overall
from .sections import INTERVALS, MARK, sections
from .sentences import TEXT_NAMES, summary

if TYPE_CHECKING:
    from jinja2 import Template

    from ..plots.panels import Drawing

READS = {
    "yes_no": "the log-odds of “{yes}” against “{no}” as the next token",
    "content": "the log-probability and rank of the concept's word as the next token",
    "sample": "the text that the model goes on with",
}
INJECTED_BY = {
    "vector": "the concept's direction is added to the output of each steered block, at every token of the marked text",
    "random": "random directions of the vector's lengths are added in its place, at every token of the marked text",
    "model": "nothing is added: another model, “$MODEL”, reads the marked text, and its KV cache is taken over",
    "tokens": "nothing is added: the concept's word is written into the marked messages instead (priming)",
    "patch": "the outputs of the steered blocks at the marked text are replaced by those of another conversation",
}


def html(results: Sequence[Result], pictures: dict[str, bytes], drawings: dict[str, Drawing]) -> str:
    """The page as text.

    Args:
        pictures: figure name -> PNG, in the page's order; shown where scripts are off or there is no drawing.
        drawings: figure name -> what plotly draws.
    """
    from plotly.offline import get_plotlyjs

    from ..plots.panels import EMPTY, THEMES
    from ..plots.style import CONCEPT, CONTROL, THIRD

    figures = [_figure(name, pictures.get(name), drawings.get(name), section_names(results)) for name in pictures]
    parts = sections(results)
    for part, result, name in zip(parts, results, section_names(results), strict=True):
        part["figures"] = [one for one in figures if one["name"] == name or one["section"] == name]
        part |= {"conversation": conversation(result), "settings": settings(result), "judged": judged(result)}
        part |= {"description": describe(result), "read": result.protocol["read"], "anchor": name}
        part["questions"] = questions(result)
    first = results[0]
    return template("page.html.jinja").render(
        model=first.model,
        settings=first.settings,
        verdict=overall(results),
        heading=heading(results),
        summary=summary(list(results)),
        overview=[figure for figure in figures if figure["name"] == "overview"],
        sections=parts,
        columns={name: text for part in parts for table in part["tables"] for name, text in table.legend},
        text_names=TEXT_NAMES,
        protocols=[result.protocol for result in results],
        has_sweep=any(map(is_sweep, results)),
        any_random=any(is_random(row) for result in results for row in result.rows),
        intervals=INTERVALS,
        mark=MARK,
        yes=first.protocol["yes_token"],
        no=first.protocol["no_token"],
        plotly=get_plotlyjs() if drawings else "",
        themes=json.dumps(THEMES),
        swatches={CONCEPT: "concept", CONTROL: "control", THIRD: "third", EMPTY: "empty"},
    )


def template(name: str) -> Template:
    """A template of this folder; what it is given is escaped."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def heading(results: Sequence[Result]) -> str:
    """The question that the page answers."""
    name, reads = results[0].model["name"], {result.protocol["read"] for result in results}
    if "yes_no" in reads:
        return f"Does {name} notice an injected concept?"
    if "content" in reads:
        return f"Can {name} say what was injected?"
    return f"What does {name} say with a concept injected?"


def section_names(results: Sequence[Result]) -> list[str]:
    """A name for each result that no other has: its protocol's, with a number after it the second time."""
    names: list[str] = []
    for result in results:
        name, n = result.protocol["name"], 2
        while name in names:
            name, n = f"{result.protocol['name']}-{n}", n + 1
        names.append(name)
    return names


def _figure(name: str, png: bytes | None, drawing: Drawing | None, sections: Sequence[str]) -> dict[str, Any]:
    from ..plots.panels import page_json

    panels = drawing.panels if drawing else []
    return {
        "name": name,
        # A figure is named after its section, with what it draws after it.
        "section": max((one for one in sections if f"{name}_".startswith(f"{one}_")), key=len, default=name),
        "png": base64.b64encode(png or b"").decode("ascii"),
        "panels": [{"title": panel.title, "height": panel.height} for panel in panels],
        "width": drawing.width if drawing else 0,
        "legend": [asdict(swatch) for swatch in drawing.legend] if drawing else [],
        "json": "[" + ",".join(map(page_json, panels)) + "]",
    }


def definition_of(result: Result) -> dict[str, Any]:
    """The protocol as data: turns, injected spans, controls. Empty where neither the result nor this version has it."""
    protocol = result.protocol
    if protocol.get("definition"):
        return protocol["definition"]
    from ..experiments import run as experiment  # here, because it loads torch

    if protocol["name"] in experiment.PROTOCOLS + experiment.MORE_PROTOCOLS:
        shipped = experiment.load_protocol(protocol["name"])
        if shipped.hash == protocol["hash"]:
            return json.loads(shipped.to_json())
    return {}


def describe(result: Result) -> str:
    """A sentence about the protocol: ours for those that are shipped, and the file's own source for others."""
    known = json.loads((share_folder() / "descriptions.json").read_text(encoding="utf-8"))
    definition = definition_of(result)
    return definition.get("description") or known.get(result.protocol["name"]) or definition.get("source", "")


def conversation(result: Result) -> list[dict[str, Any]]:
    """The messages in pieces that were injected or not; empty where the result's file does not hold them."""
    definition = definition_of(result)
    turns = definition.get("turns") or []
    spans = definition.get("injected") or []
    whole = {span for span in spans if isinstance(span, int)}
    passages: dict[int, list[str]] = {}
    for span in spans:
        if isinstance(span, dict):
            passages.setdefault(span["turn"], []).append(span["text"])
    last_user = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    listed = []
    for i, turn in enumerate(turns):
        is_prefix = i == len(turns) - 1 and turn["role"] == "assistant"
        listed.append(
            {
                "role": turn["role"],
                "pieces": [(turn["content"], True)] if i in whole else _pieces(turn["content"], passages.get(i, [])),
                "injected": i in whole or i in passages,
                "question": i == last_user,
                "prefix": is_prefix,
            }
        )
    return listed


def _pieces(text: str, passages: Sequence[str]) -> list[tuple[str, bool]]:
    """The text cut at its passages: (piece, whether it is one)."""
    pieces, start = [], 0
    for passage in passages:
        at = text.find(passage, start)
        if at < 0:
            continue
        pieces += [(text[start:at], False), (passage, True)]
        start = at + len(passage)
    return [piece for piece in [*pieces, (text[start:], False)] if piece[0]]


def questions(result: Result) -> list[str]:
    """The introspection questions that were asked, as the rows name them."""
    return list(dict.fromkeys(row["question"] for row in result.rows if row["kind"] == "introspection"))


def controls(result: Result) -> list[str]:
    """The control questions that were asked."""
    return list(dict.fromkeys(row["question"] for row in result.rows if row["question_kind"] == "control"))


def _doses(result: Result) -> str:
    """What was asked for, and the range of what was measured."""
    kls = [kl for setting in result.groups if (kl := result.dose_kl(setting)) is not None]
    if not kls:
        return ""
    targets = dict.fromkeys(filter(None, map(result.dose_target, result.groups)))
    spread = f"{min(kls):.3g}" if min(kls) == max(kls) else f"{min(kls):.3g} to {max(kls):.3g}"
    asked = f"{', '.join(targets)}: " if targets else ""
    return f"{asked}KL {spread} nats a token from the run without injection, at the injected tokens"


def settings(result: Result) -> list[tuple[str, str]]:
    """(name, text) of everything that was set."""
    model, own, protocol = result.model, result.settings, result.protocol
    definition = definition_of(result)
    strengths = sorted({setting.strength for setting in result.groups})
    ranges = sorted({(setting.first_layer, setting.last_layer) for setting in result.groups})
    inject = definition.get("inject") or {"by": protocol.get("inject", "vector")}
    if isinstance(inject, str):
        inject = {"by": inject}
    how = INJECTED_BY.get(inject.get("by", "vector"), "").replace("$MODEL", str(inject.get("model", "")))
    read = READS[protocol["read"]].format(yes=protocol["yes_token"].strip(), no=protocol["no_token"].strip())
    n_random = len({random_direction(row) for row in result.rows if is_random(row)})
    lines = [
        ("model", f"{model['name']}: {model['architecture']}, {model['n_layers']} blocks"),
        ("numbers", f"{model['dtype']} on {model['device']}; what is read is computed in float32"),
        ("concepts", ", ".join(result.concepts)),
        ("injection", how),
        ("strength", f"{_short([f'{s:g}' for s in strengths])} {_unit(result)}"),
        ("dose", _doses(result)),
        ("steered blocks", _short([blocks(*ends) for ends in ranges]) + f" of 0 to {model['n_layers'] - 1}"),
        ("steering", "stays on while the answer is written" if definition.get("steer_generation") else ""),
        ("read", read),
        ("random directions", _random(n_random)),
        ("control questions", _controls(result)),
        ("seed, threads", f"{own['seed']}, {own['threads']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in own["versions"].items())),
        ("model's hash", model["hash"]),
        ("protocol's hash", protocol["hash"]),
    ]
    return [(name, text) for name, text in lines if text]


def _short(items: Sequence[str], most: int = 12) -> str:
    return ", ".join(items) if len(items) <= most else f"{', '.join(items[:most])}, … ({len(items)} in all)"


def _unit(result: Result) -> str:
    if result.settings.get("strength_unit") == "residual":
        return (
            "× residual norm: every block's direction has length 1, and a strength of 1 adds as much as the usual "
            "(median) length of the residual stream after that block, over the injected tokens"
        )
    return "× the vector: its directions are added as they are, at the length they have in their file"


def _random(n: int) -> str:
    if n == 0:
        return "none, so nothing can be told from an arbitrary disturbance"
    return f"{n} for each concept: its own vector turned at random, with the same length in every layer"


def _controls(result: Result) -> str:
    asked = controls(result)
    if not asked:
        return "none"
    definition = definition_of(result)
    named = result.settings.get("controls", "")
    where = {
        "": "",
        "own": "asked in this conversation, in place of its question",
        "with_info": "asked in the with_info conversation and not in this one, as the article does",
    }.get(named, f"asked in the {named} conversation and not in this one")
    if not where and (control := definition.get("controls")) and isinstance(control, dict):
        same = _before_question(control.get("turns", [])) == _before_question(definition.get("turns", []))
        where = (
            "asked in this conversation, in place of its question"
            if same
            else ("asked in another conversation than this one, so their shift is of that context")
        )
    return f"{len(asked)} with a plain answer of no" + (f", {where}" if where else "")


def _before_question(turns: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """The messages before the last of the user."""
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=0)
    return [(turn["role"], turn["content"]) for turn in turns[:last]]
