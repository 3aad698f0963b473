"""``introspect run``: inject concepts, ask, and keep what was seen."""

from __future__ import annotations

from typing import Annotated

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
    print_json,
)

DEFAULT_LAYERS = Layers(0.33, 0.66)  # the article's blocks 21-42 of 64


@guarded
def command(
    model: Model,
    protocols: experiment.Protocols,
    vector: experiment.Vectors,
    output: experiment.Folder,
    strength: experiment.Strength = None,
    fraction: experiment.Fraction = None,
    layers: experiment.Ranges = None,
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
