"""``introspect dose``: how much injections do to a model, and the strengths that do as much as is wanted."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from . import experiment
from .common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    Model,
    guarded,
    load_model,
    note,
    output_file,
    print_json,
)
from .lists import Fractions, Strengths, flat, parse_ranges
from .run import DEFAULT_LAYERS

EVERYDAY = "prompts"


@guarded
def command(
    model: Model,
    protocol: Annotated[
        str,
        typer.Argument(
            metavar="PROTOCOL",
            help=f"Where: no_info, with_info, a file of your own, or {EVERYDAY}: three everyday questions, steered at "
            "every token as generation is.",
        ),
    ],
    vector: experiment.Vectors,
    strength: Strengths = None,
    fraction: Fractions = None,
    layers: Annotated[
        list[Layers] | None,
        typer.Option(
            parser=parse_ranges, metavar="A-B,...", help="Ranges of blocks, or fractions; 0.33-0.66 if not given."
        ),
    ] = None,
    nulls: Annotated[int, typer.Option(min=0, max=1000, help="Random rotations of each vector, measured too.")] = 0,
    texts: Annotated[bool, typer.Option(help="Also draw texts, and say whether they are coherent.")] = True,
    plot: Annotated[
        Path | None, typer.Option(metavar="F", help="Draw dose, size and coherence over strength: .png, .svg or .pdf.")
    ] = None,
    seed: experiment.Seed = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Measure what concepts' vectors do: KL from the unsteered run, length, leakage, and how the text then reads.

    At 0.025 to 0.8 residual norms if no strength is given.
    """
    files = experiment.vector_files(vector)
    if plot is not None:
        output_file(plot, (".png", ".svg", ".pdf"))
    chosen = experiment.strengths(flat(strength), flat(fraction))
    import introspect

    where = None if protocol == EVERYDAY else experiment.load_protocols([protocol])[0]
    vectors = {name: introspect.ControlVector.load(path) for name, path in files.items()}
    loaded = load_model(model, dtype, device)
    found = introspect.dose(
        loaded,
        vectors,
        where,
        **{"strength_unit": "residual", **chosen},
        layers=[tuple(one) for one in flat(layers) or [DEFAULT_LAYERS]],
        nulls=nulls,
        seed=seed,
        coherence=texts,
    )
    if plot is not None:
        found.plot().savefig(plot)
    if json:
        print_json(json_module.loads(found.to_json()))
        return
    typer.echo(found.summary())
    if not all(row.monotone for row in found):
        note(
            "introspect: where more strength does not give more dose throughout, the smallest that reaches it is taken"
        )
