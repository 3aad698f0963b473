"""``introspect train``: a control vector for a concept."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..data import load_suffixes
from ..progress import step_bars
from .common import DeviceOption, Dtype, DtypeOption, Json, Model, guarded, load_model, output_file, print_json


class Method(str, Enum):
    pca_center = "pca_center"
    pca_global_center = "pca_global_center"
    pca_diff = "pca_diff"
    pca_diff_uncentered = "pca_diff_uncentered"
    lat = "lat"
    mean_diff = "mean_diff"
    logistic = "logistic"


@guarded
def command(
    model: Model,
    concept: Annotated[str, typer.Option(help="The word: “Please talk about {concept}.” against “anything”.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .gguf or .safetensors file.")],
    method: Annotated[
        Method,
        typer.Option(
            help="First component (pca_*, lat), mean difference or logistic regression; see ControlVector.train."
        ),
    ] = Method.pca_center,
    suffixes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Beginnings of answers (JSON list or lines)."),
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Train a control vector for a concept and write it to a file."""
    output_file(output, (".gguf", ".safetensors"))
    beginnings = load_suffixes(suffixes)
    import introspect

    loaded = load_model(model, dtype, device)
    pairs = introspect.concept_pairs(loaded, concept, beginnings)
    with step_bars() as step:
        vector = introspect.ControlVector.train(loaded, pairs, method=method.value, progress=step)
    vector.save(output)
    if json:
        print_json({"path": str(output), "concept": concept, "pairs": len(pairs), "layers": sorted(vector.directions)})
    else:
        typer.echo(output)
