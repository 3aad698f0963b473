"""``introspect vector``: look into control vectors' files, add them up, write them in the other format."""

from __future__ import annotations

import functools
import math
import operator
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .common import Json, guarded, output_file, parse_number, print_json

SUFFIXES = (".gguf", ".safetensors")
GOOD = 0.95  # AUC from which on a layer is recommended
SPREAD = 0.02  # of AUC, within which layers are equally good
MOST_EXPLAINED = 0.8  # of the largest share of the differences, from which on a layer is named for it

app = typer.Typer(help="Show, combine and convert files of control vectors.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="A .gguf or .safetensors file.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .gguf or .safetensors file.")]

# Column -> (what stands in its head, what it means).
COLUMNS = {
    "layer": ("layer", "block whose output the direction was read at and is added to"),
    "norm": ("norm", "length of the direction"),
    "first_share": ("1st share", "part of the variance of the pairs' differences that the first component takes"),
    "explained_variance": ("explained", "part of the pairs' differences that lies along the direction"),
    "sign_agreement": ("sign", "part of the pairs whose positive text lies further along it than the negative one"),
    "accuracy": ("accuracy", "part of the held-out texts on their own side of the middle; 0.5 is chance"),
    "auc": ("AUC", "chance that a held-out positive text lies further along it than a negative one; 0.5 is chance"),
}


@app.command()
@guarded
def show(file: File, json: Json = False) -> None:
    """Say where a vector came from and, layer by layer, how well it tells its pairs apart."""
    import introspect

    vector = introspect.ControlVector.load(file)
    layers = _layers(vector)
    if json:
        names = ("concept", "model_name", "model_hash", "method", "n_pairs", "folds")
        origin = {name: getattr(vector, name) for name in names}
        advice = {"advice": advice_on(layers)}
        print_json(
            {
                "path": str(file),
                "model_type": vector.model_type,
                "d_model": vector.d_model,
                **origin,
                **advice,
                "layers": layers,
            }
        )
        return
    from ..tables import print_table, printable

    first, last = vector.layers[0], vector.layers[-1]
    say = functools.partial(_say, printable)
    concept = f"“{vector.concept}”" if vector.concept else "a concept that the file does not name"
    say(f"{file}: {concept}; {vector.model_type}, d_model {vector.d_model}, {len(layers)} layers {first} to {last}")
    pairs = f" on {vector.n_pairs} pairs" if vector.n_pairs else ""
    trained_on = f" of {vector.model_name}" if vector.model_name else ""
    say(f"method {vector.method or 'unknown'}{pairs}{trained_on}")
    if vector.folds:
        say(f"accuracy and AUC are of held-out pairs, {vector.folds} folds")
    say(advice_on(layers) + "\n")
    shown = columns_of(layers)
    for name in shown:
        say(f"{COLUMNS[name][0]:<10}{COLUMNS[name][1]}")
    say("")
    rows = [[str(row["layer"]), *(_number(name, row[name]) for name in shown[1:])] for row in layers]
    print_table(_console(), [COLUMNS[name][0] for name in shown], rows)


def columns_of(layers: list[dict[str, Any]]) -> list[str]:
    """The columns that say something: known in some layer, and not the same as one before."""
    shown: list[str] = []
    for name in COLUMNS:
        values = [row[name] for row in layers]
        texts = [_number(name, value) for value in values]
        known = any(value is not None and not math.isnan(value) for value in values)
        repeats = name == "explained_variance" and texts == [
            _number("first_share", row["first_share"]) for row in layers
        ]
        if known and not repeats:
            shown.append(name)
    return shown


def advice_on(layers: list[dict[str, Any]]) -> str:
    """Which layers look good and why, in one sentence."""
    known = {row["layer"]: row["auc"] for row in layers if row["auc"] is not None and not math.isnan(row["auc"])}
    if not known:
        return "Nothing was held out when it was made, so the file cannot say which layers are good."
    best = max(known.values())
    if best < GOOD:
        layer = max(known, key=lambda one: known[one])
        return f"No layer tells held-out pairs apart well (the best, {layer}, has an AUC of {best:.2f}; 0.5 is chance)."
    good = [layer for layer, auc in known.items() if auc >= max(GOOD, best - SPREAD)]
    said = f"Layers {_runs(good)} tell held-out pairs apart best (AUC {max(GOOD, best - SPREAD):.2f} or more)"
    explained = {row["layer"]: row["explained_variance"] for row in layers if row["layer"] in good}
    least = MOST_EXPLAINED * max(explained.values())
    strong = [layer for layer, share in explained.items() if share >= least]
    if len(strong) < len(good):
        said += (
            f"; of these the direction holds most of the pairs' differences in {_runs(strong)} ({least:.2f} or more)"
        )
    return said + "."


def _runs(layers: list[int]) -> str:
    """ "3–5, 8": the first and last of every run of neighbouring numbers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


class Terms(TyperCommand):
    """A command whose arguments may begin with a minus and a number, as in -0.5*b.gguf."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A space before it, which _term passes over, keeps such an argument from being taken for options.
        return super().parse_args(ctx, [f" {arg}" if re.match(r"-\.?\d", arg) else arg for arg in args])


@app.command(cls=Terms)
@guarded
def combine(
    terms: Annotated[
        list[str],
        typer.Argument(
            metavar="[WEIGHT*]FILE...", help="Files, each with a weight before it if not 1: 0.5*a.gguf, -1*b.gguf."
        ),
    ],
    output: Output,
) -> None:
    """Write the weighted sum of vectors, as in: introspect vector combine -o c.gguf a.gguf -0.5*b.gguf"""
    weighted = [_term(text) for text in terms]
    output_file(output, SUFFIXES)
    import introspect

    parts = []
    for weight, path in weighted:
        vector = introspect.ControlVector.load(path)
        parts.append(vector if weight == 1 else weight * vector)
    total = functools.reduce(operator.add, parts)
    total.save(output)
    typer.echo(output)


@app.command()
@guarded
def convert(file: File, output: Output) -> None:
    """Write a vector in the other format: GGUF for repeng and llama.cpp, safetensors for everything else."""
    output_file(output, SUFFIXES)
    import introspect

    introspect.ControlVector.load(file).save(output)
    typer.echo(output)


def _layers(vector: Any) -> list[dict[str, Any]]:
    norms, spectrum, diagnostics = vector.norms, vector.spectrum, vector.diagnostics
    rows = []
    for layer in vector.layers:
        judged = diagnostics.get(layer)
        figures = {
            name: getattr(judged, name, None) for name in ("explained_variance", "sign_agreement", "accuracy", "auc")
        }
        shares = spectrum.get(layer, [])
        rows.append(
            {
                "layer": layer,
                "norm": norms[layer],
                "first_share": shares[0] if shares else None,
                **figures,
                "spectrum": shares,
            }
        )
    return rows


def _console() -> Any:
    from rich.console import Console

    return Console()


def _say(printable: Any, text: str) -> None:
    for line in text.split("\n"):
        typer.echo(printable(line))


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4g}" if name == "norm" else f"{value:.3f}"


def _term(text: str) -> tuple[float, Path]:
    """ "0.5*cat.gguf" or "cat.gguf"; a file whose own name has a star in it is taken as it is."""
    text = text.removeprefix(" ")
    weight, path = 1.0, Path(text)
    if not path.exists() and "*" in text:
        number, _, name = text.partition("*")
        weight, path = parse_number(number), Path(name)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}")
    return weight, path
