"""``introspect vector``: look into control vectors' files, add them up, write them in the other format."""

from __future__ import annotations

import functools
import math
import operator
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, guarded, output_file, parse_number, print_json

SUFFIXES = (".gguf", ".safetensors")

app = typer.Typer(help="Show, combine and convert files of control vectors.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="A .gguf or .safetensors file.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .gguf or .safetensors file.")]


@app.command()
@guarded
def show(file: File, json: Json = False) -> None:
    """Say where a vector came from and, layer by layer, how well it tells its pairs apart."""
    import introspect

    vector = introspect.ControlVector.load(file)
    layers = _layers(vector)
    if json:
        origin = {name: getattr(vector, name) for name in ("model_name", "model_hash", "method", "n_pairs", "folds")}
        print_json(
            {"path": str(file), "model_type": vector.model_type, "d_model": vector.d_model, **origin, "layers": layers}
        )
        return
    first, last = vector.layers[0], vector.layers[-1]
    typer.echo(f"{file}: {vector.model_type}, d_model {vector.d_model}, {len(layers)} layers {first} to {last}")
    pairs = f" on {vector.n_pairs} pairs" if vector.n_pairs else ""
    trained_on = f" of {vector.model_name}" if vector.model_name else ""
    typer.echo(f"method {vector.method or 'unknown'}{pairs}{trained_on}")
    if vector.folds:
        typer.echo(f"accuracy and AUC are of held-out pairs, {vector.folds} folds")
    typer.echo(f"\n{'layer':>5}{'norm':>10}{'1st share':>11}{'explained':>11}{'sign':>7}{'accuracy':>10}{'AUC':>7}")
    for row in layers:
        typer.echo(
            f"{row['layer']:>5}{row['norm']:>10.4g}{_share(row['first_share']):>11}{_share(row['explained_variance']):>11}"
            f"{_share(row['sign_agreement']):>7}{_share(row['accuracy']):>10}{_share(row['auc']):>7}"
        )


@app.command()
@guarded
def combine(
    terms: Annotated[
        list[str],
        typer.Argument(metavar="[WEIGHT*]FILE...", help="Files, each with a weight before it if not 1: 0.5*a.gguf."),
    ],
    output: Output,
) -> None:
    """Write the weighted sum of vectors.

    A weight below zero needs a -- before the files: introspect vector combine -o c.gguf -- a.gguf -0.5*b.gguf
    """
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


def _layers(vector) -> list[dict[str, Any]]:
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


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _term(text: str) -> tuple[float, Path]:
    """ "0.5*cat.gguf" or "cat.gguf"; a file whose own name has a star in it is taken as it is."""
    weight, path = 1.0, Path(text)
    if not path.exists() and "*" in text:
        number, _, name = text.partition("*")
        weight, path = parse_number(number), Path(name)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}")
    return weight, path
