"""``introspect run``: inject concepts, ask, and keep what was seen."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import report
from . import experiment
from .common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    Model,
    guarded,
    note,
    one,
    parse_layers,
    parse_number,
    parse_strength,
    print_json,
)

DEFAULT_LAYERS = Layers(0.33, 0.66)  # the article's blocks 21-42 of 64


@guarded
def command(
    model: Model,
    protocols: experiment.Protocols,
    vector: experiment.Vectors,
    output: experiment.Folder,
    strength: Annotated[
        list[Any] | None,
        typer.Option(
            parser=one(parse_strength, "--strength"),
            metavar="S",
            help="Factor of the vector, or a dose that is solved for: kl=0.5 (nats), sd=2, coherent.",
        ),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            parser=one(parse_number, "--fraction"),
            metavar="F",
            help="Strength as a fraction of the median residual norm. 0.1 if not given.",
        ),
    ] = None,
    layers: Annotated[
        list[Layers] | None,
        typer.Option(
            parser=one(parse_layers, "--layers"),
            metavar="A-B",
            help="Steered blocks, or fractions. 0.33-0.66 if not given.",
        ),
    ] = None,
    questions: experiment.Questions = "controls",
    controls: experiment.Controls = None,
    nulls: experiment.Nulls = 10,
    seed: experiment.Seed = 0,
    lens: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Also read every block's output: through 'logit', or a tuned lens' folder or .safetensors file.",
        ),
    ] = "",
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    dry_run: experiment.DryRun = False,
    yes: experiment.Yes = False,
    json: Json = False,
) -> None:
    """Run protocols on a model, with concepts injected.

    Readings are kept in DIR as they are finished: what was interrupted goes on where it stopped, and settings that
    earlier runs into DIR had stay in its results.
    """
    files = experiment.vector_files(vector)
    options = {
        **experiment.strengths(strength, fraction),
        "dose": True,
        "layers": [tuple(one) for one in layers or [DEFAULT_LAYERS]],
        "questions": experiment.control_questions(questions),
        "controls": controls,
        "nulls": nulls,
        "seed": seed,
        "lens": lens if lens not in ("", "logit") else lens == "logit",
    }
    import introspect

    chosen = experiment.load_protocols(protocols, controls)
    options["vectors"] = {name: introspect.ControlVector.load(path) for name, path in files.items()}
    ran = experiment.run_protocols(
        model,
        chosen,
        output,
        note_name="run.json",
        dtype=dtype,
        device=device,
        options=lambda loaded: options,
        show=lambda result: None if json else report.show_one(result),
        dry_run=dry_run,
        yes=yes,
        json=json,
    )
    if not ran:
        return
    if json:
        names = {protocol.name for protocol in chosen}
        print_json(report.as_dict([r for r in report.load_folder(output) if r.protocol["name"] in names]))
    else:
        note(f"\nsummary, plots and the page: introspect report {output}")
