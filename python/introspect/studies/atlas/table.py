"""A replication as text: its verdict, our figures beside the published ones, and the rungs."""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

from ..claims import NOT_RUN

WIDTH = 100
ARMS = re.compile(r"(.*arms=\[)(.*)(\].*)")
"""Of a call: what is before its arms, these, and what is after."""
HEAD = ("figure", "ours [95%]", "chance", "n")


def text_table(ran: Any) -> str:
    """Title, question, verdict, our figures in lines with the published ones under them, rungs, and what differs."""
    entry = ran.entry
    cells = [
        (
            figure.name,
            f"{figure} {figure.unit}",
            "" if math.isnan(figure.chance) else f"{figure.chance:.3g}",
            str(figure.estimate.n),
        )
        for figure in ran.figures
    ]
    widths = [max(len(row[i]) for row in (HEAD, *cells)) for i in range(len(HEAD))]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()

    lines = [entry.title, *textwrap.wrap(entry.source, WIDTH), *textwrap.wrap(entry.asks, WIDTH), ""]
    lines += [*textwrap.wrap(f"verdict: {ran.verdict}", WIDTH, subsequent_indent="  "), "", line(HEAD)]
    rows = ran.rows()
    said = ""
    for figure, cell, row in zip(ran.figures, cells, rows, strict=True):
        lines.append(line(cell))
        if row["published"] not in ("", said):  # one that stands beside several is said once
            said = row["published"]
            lines += textwrap.wrap(
                f"published: {row['published']}", WIDTH, initial_indent="    ", subsequent_indent="    "
            )
        lost = [(figure.n_failed, "failed"), (figure.n_left, "left yes and no unlikely")]
        if counts := [f"{n} {what}" for n, what in lost if n]:
            lines.append(f"    of {figure.n_readings} readings {', '.join(counts)}")
    beside = {one for figure in ran.figures for one in ran.published(figure)}
    if others := [one for one in entry.published if one not in beside]:
        lines += ["", "published, with nothing of ours beside it:"]
        for one in others:
            note = f" ({one.note})" if one.note else ""
            lines += textwrap.wrap(
                f"{one.name}: {one.value}{'' if one.unit == '%' else ' '}{one.unit}".rstrip() + note,
                WIDTH,
                initial_indent="  ",
                subsequent_indent="  ",
            )
    lines += ["", "rungs:", *_rungs(ran.claims)]
    lines += ["", "what differs:"]
    for text in ran.differs:
        lines += textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def _rungs(claims: Any) -> list[str]:
    """Those that were run with their sentences, then the others, and calls that would run them."""
    lines = []
    for rung in claims.rungs:
        if rung.verdict != NOT_RUN:
            said = f"{rung.mark} {rung.title}: {rung.verdict}. {rung.sentence}"
            lines += textwrap.wrap(said, WIDTH, subsequent_indent="  ")
    left = [rung for rung in claims.rungs if rung.verdict == NOT_RUN]
    if left:
        titles = f"– not run: {', '.join(rung.title for rung in left)}. What would run them:"
        lines += textwrap.wrap(titles, WIDTH, subsequent_indent="  ")
        for call in _calls([rung.what_would_run_it for rung in left]):
            lines += textwrap.wrap(call, WIDTH, initial_indent="    ", subsequent_indent="        ")
    return lines + [line for note in claims.notes for line in textwrap.wrap(f"! {note}", WIDTH)]


def _calls(runs: list[str]) -> list[str]:
    """Calls that differ in their arms alone as one."""
    arms: dict[tuple[str, str], dict[str, None]] = {}
    for run in dict.fromkeys(runs):
        parts = ARMS.fullmatch(run)
        if parts:
            arms.setdefault((parts[1], parts[3]), {}).update(dict.fromkeys(parts[2].split(", ")))
        elif run:
            arms.setdefault((run, ""), {})
    return [f"{before}{', '.join(some)}{after}" for (before, after), some in arms.items()]
