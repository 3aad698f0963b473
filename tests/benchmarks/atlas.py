"""Tables of replications that `introspect replicate -o` has saved: figures of several models beside the published ones,
and what became of each study's claims.

    python tests/benchmarks/atlas.py "SmolLM2-135M=runs/smollm2" "Coder-0.5B=runs/coder-0.5b"
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from introspect.studies import atlas
from introspect.studies.claims import Claims, number

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
    "fornasiere": ["which/label_share", "which/right_label"],
    "lederman_mahowald": ["person/yes_rate/person=first", "person/first_beyond_third", "guess/apple"],
    "godet": ["asked/towards_zero", "asked/net_shift"],
    "numeric_self_report": ["report/self_report", "report/unrelated_question"],
    "gemma_replication": ["detect/beyond_random_vectors/strength=0.2", "detect/net_shift/strength=0.2"],
}
"""Of every entry the figures that a short table shows."""


def figures(ran: dict[str, dict[str, atlas.Replication]]) -> list[str]:
    """Lines of Markdown: a row a figure, a column a model."""
    models = list(ran)
    lines = [f"| entry | figure | {' | '.join(models)} | published |", "|---" * (len(models) + 3) + "|"]
    for name, headlines in HEADLINES.items():
        if not any(name in found for found in ran.values()):
            continue
        for i, headline in enumerate(headlines):
            cells, unit, published = [], "", ""
            for model in models:
                replication = ran[model].get(name)
                if replication is None:
                    cells.append("")
                    continue
                figure = replication[headline]
                unit = figure.unit + ("" if math.isnan(figure.chance) else f", chance {figure.chance:.2g}")
                cells.append(str(figure))
                published = "; ".join(
                    f"{one.value:g} {one.unit}" if isinstance(one.value, int | float) else one.value
                    for one in replication.published(figure)
                )
            title = f"`{name}`" if i == 0 else ""
            lines.append(f"| {title} | {headline} ({unit}) | {' | '.join(cells)} | {published} |")
        marks = [outcomes(ran[model][name].claims) if name in ran[model] else "" for model in models]
        lines.append(f"| | *rungs* | {' | '.join(marks)} | |")
    return lines


def outcomes(claims: Claims) -> str:
    """The names of the rungs that were run by what became of them; nothing above an instrument that is not live."""
    if claims["live"].verdict == "fails":
        return "✗ the instrument is live"
    run = [rung for rung in claims.rungs if rung.verdict != "not run" and rung.name != "live"]
    by_mark: dict[str, list[str]] = {}
    for rung in run:
        by_mark.setdefault(rung.mark, []).append(rung.title)
    return "; ".join(f"{mark} {', '.join(titles)}" for mark, titles in by_mark.items())


def verdicts(ran: dict[str, dict[str, atlas.Replication]]) -> list[str]:
    """Lines of Markdown: of every entry and model the rungs that were run."""
    lines = ["| entry | model | n | what the rungs say |", "|---|---|---|---|"]
    for name in HEADLINES:
        for model, found in ran.items():
            if name not in found:
                continue
            said = []
            for rung in found[name].claims.rungs:
                if rung.verdict == "not run" or rung.name == "live":
                    continue
                effect = "" if rung.effect is None else f" {number(rung.effect, rung.unit, rung.interval)}"
                felled = [one["name"] for one in rung.contrasts if one["name"] in rung.felled_by]
                more = f" and {len(felled) - 1} more" if len(felled) > 1 else ""
                said.append(f"{rung.mark} {rung.title}{effect}" + (f" (by {felled[0]}{more})" if felled else ""))
            live = found[name].claims["live"]
            dead = [] if live.verdict == "holds" else [f"{live.mark} {live.title}: {live.sentence}"]
            lines.append(f"| `{name}` | {model} | {len(found[name].settings['concepts'])} | {'; '.join(dead + said)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="MODEL=FOLDER", help="a folder of one or more replications")
    ran: dict[str, dict[str, atlas.Replication]] = {}
    for one in parser.parse_args().runs:
        model, _, folder = one.partition("=")
        loaded = [atlas.Replication.load(path) for path in sorted(Path(folder).rglob("*.json"))]
        ran[model] = {replication.entry.name: replication for replication in loaded}
    print("\n".join([*figures(ran), "", *verdicts(ran)]))


if __name__ == "__main__":
    main()
