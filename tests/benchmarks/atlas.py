"""Tables of replications that `introspect replicate -o` has saved: figures of several models beside the published ones,
and what became of each study's claims.

    python tests/benchmarks/atlas.py "SmolLM2-135M=runs/smollm2" "Coder-0.5B=runs/coder-0.5b" --json atlas.json

The JSON file has every figure and every claim that was tested, a line each; atlas.json here is what notebook 13 reads.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from introspect._json import finite
from introspect.studies import atlas
from introspect.studies.claims import Rung, number

HEADLINES = {
    "lindsey_injected_thoughts": ["detect/yes_rate", "detect/false_positives", "detect/beyond_random_vectors"],
    "lindsey_thought_and_text": ["thought/identified_by_gain", "text/repeats"],
    "lindsey_prefill": ["meant/own_beyond_other"],
    "lindsey_control": ["presence/think_beyond_dont"],
    "pearson_vogel": ["framings/information_helps", "confusion/mutual_information/info=introspect"],
    "macar": ["detect/beyond_random_vectors", "forced/identified_by_gain", "unprompted/identified_by_gain"],
    "hahami": [
        "where/localised/question=injected",
        "where/localised/question=abstract",
        "where/localised/question=concrete",
        "yes/net_shift",
    ],
    "zou": ["where/localised", "where/localised_by_gain", "any/yes_shift"],
    "fornasiere": [
        "where/localised/question=disturbed",
        "where/localised/question=abstract",
        "which/label_share",
        "which/right_label",
    ],
    "lederman_mahowald": ["person/yes_rate/person=first", "person/first_beyond_third", "guess/apple"],
    "godet": ["asked/towards_zero", "asked/net_shift"],
    "numeric_self_report": ["report/self_report", "report/unrelated_question"],
    "gemma_replication": ["detect/beyond_random_vectors/strength=0.2", "detect/net_shift/strength=0.2"],
}
"""Of every entry the figures that a short table shows."""


def figures(ran: dict[str, dict[str, atlas.Replication]]) -> list[str]:
    """Lines of Markdown: a row a figure, a column a model."""
    models = list(ran)
    heads = [
        ", ".join([model, *sorted({one.model["dtype"] for one in found.values()})]) for model, found in ran.items()
    ]
    lines = [f"| entry | figure | {' | '.join(heads)} | published |", "|---" * (len(models) + 3) + "|"]
    for name in labels(ran):
        for i, headline in enumerate(HEADLINES[name.split(" at ")[0]]):
            cells, unit, published = [], "", ""
            chances: dict[str, None] = {}
            for model in models:
                replication = ran[model].get(name)
                if replication is None:
                    cells.append("")
                    continue
                figure = replication[headline]
                if not math.isnan(figure.chance):
                    chances[f"{figure.chance:.2g}"] = None
                unit = figure.unit + (f", chance {' or '.join(chances)}" if chances else "")
                cells.append(str(figure))
                published = "; ".join(stated(one) for one in replication.published(figure))
            title = f"`{name}`" if i == 0 else ""
            lines.append(f"| {title} | {headline} ({unit}) | {' | '.join(cells)} | {published} |")
    return lines


def label(one: atlas.Replication) -> str:
    """The entry's name, and the strength where it is not the entry's."""
    strengths, usual = one.settings["strengths"], one.entry.settings.get("strengths")
    return one.entry.name if strengths == usual else f"{one.entry.name} at {', '.join(f'{s:g}' for s in strengths)}"


def labels(ran: dict[str, dict[str, atlas.Replication]]) -> list[str]:
    """Of all models, in the order of HEADLINES."""
    order = list(HEADLINES)
    return sorted(
        {name for found in ran.values() for name in found}, key=lambda name: (order.index(name.split(" at ")[0]), name)
    )


def stated(one: atlas.Published) -> str:
    """A published value with its unit and name; its notes are left out."""
    value = f"{one.value:g}" if isinstance(one.value, int | float) else one.value
    return f"{value}{'' if one.unit == '%' else ' '}{one.unit}".rstrip() + f" ({one.name})"


def tested(replication: atlas.Replication) -> list[tuple[str, Rung]]:
    """The claims that were tested, with their marks; nothing but the instrument where it is not live.

    Equivalence (≈) is a failure that is shown to be no larger to the other side either.
    """
    claims = replication.claims
    if claims["live"].verdict == "fails":
        return [(claims["live"].mark, claims["live"])]
    own = {one.name: one.smallest for one in replication.entry.claims}
    found = []
    for rung in claims.rungs:
        if rung.verdict == "not run" or rung.name == "live":
            continue
        least = own.get(rung.name, claims.smallest_share if rung.unit == "share" else claims.smallest)
        is_equivalent = rung.verdict == "fails" and rung.bound is not None and rung.bound <= least
        found.append(("≈" if is_equivalent else rung.mark, rung))
    return found


def claims(ran: dict[str, dict[str, atlas.Replication]]) -> list[str]:
    """Lines of Markdown: a row a claim that was tested, a column a model."""
    models = list(ran)
    lines = [f"| entry | n | claim | {' | '.join(models)} |", "|---" * (len(models) + 3) + "|"]
    for name in labels(ran):
        of_model = {model: tested(ran[model][name]) for model in models if name in ran[model]}
        # With so few concepts that most of them do so is never shown: it is left to the JSON file.
        run = {rung.title for listed in of_model.values() for _, rung in listed if rung.name != "concepts"}
        in_order = [rung.title for rung in ran[next(iter(of_model))][name].claims.rungs]
        counts = [str(len(ran[model][name].settings["concepts"])) if name in ran[model] else "–" for model in models]
        n = counts[0] if len(set(counts)) == 1 else ", ".join(counts)
        for i, title in enumerate(sorted(run, key=in_order.index)):
            cells = [
                next((said(mark, rung) for mark, rung in of_model.get(model, []) if rung.title == title), "")
                for model in models
            ]
            about = f"`{name}` | {n}" if i == 0 else " |"
            lines.append(f"| {about} | {title} | {' | '.join(cells)} |")
    return lines


def said(mark: str, rung: Rung) -> str:
    """The mark, and beside it the bound of what is open or equivalent, or else the effect."""
    unit = rung.unit if rung.unit in ("nats", "share") else ""
    if rung.name == "live" or rung.effect is None:
        return mark
    if mark in "≈?" and rung.bound is not None:
        return f"{mark} ±{number(rung.bound, unit).lstrip('+')}".rstrip()
    return f"{mark} {number(rung.effect, unit)}".rstrip()


def rows(ran: dict[str, dict[str, atlas.Replication]]) -> dict[str, list[dict[str, Any]]]:
    """Every figure, and every claim that was tested, of every entry and model."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "claims": []}
    for model, replications in ran.items():
        for name, one in replications.items():
            settings = one.settings
            about = {"entry": name, "model": model, "dtype": one.model["dtype"], "strengths": settings["strengths"]}
            about["concepts"] = len(settings["concepts"])
            for row in one.rows():
                del row["published"]  # is the entry's
                found["figures"].append({**about, **row})
            for mark, rung in tested(one):
                low, high = rung.interval or (math.nan, math.nan)
                said = {key: getattr(rung, key) for key in ("name", "title", "verdict", "effect", "bound", "unit")}
                found["claims"].append({**about, "mark": mark, **said, "low": low, "high": high})
    return found


def write(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """JSON with a line for each row, numbers with six digits."""
    parts = []
    for name, listed in found.items():
        short = ({key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in row.items()} for row in listed)
        lines = [json.dumps(finite(row), ensure_ascii=False, allow_nan=False) for row in short]
        parts.append(f"{json.dumps(name)}: [\n" + ",\n".join(lines) + "\n]")
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="MODEL=FOLDER", help="a folder of replications, or several with commas between"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and claim to it too")
    given = parser.parse_args()
    ran: dict[str, dict[str, atlas.Replication]] = {}
    for one in given.runs:
        model, _, folders = one.partition("=")
        paths = [path for folder in folders.split(",") for path in sorted(Path(folder).rglob("*.json"))]
        ran[model] = {label(one): one for one in map(atlas.Replication.load, paths)}
    print("\n".join([*figures(ran), "", *claims(ran)]))
    if given.json:
        write(given.json, rows(ran))


if __name__ == "__main__":
    main()
