"""``introspect run``: inject concepts, ask, and keep what was seen."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import report
from ..progress import step_bars
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
    parse_layers,
    parse_number,
    print_json,
)

DEFAULT_FRACTION = 0.1  # of the mean residual norm: small models answer in whole sentences up to here
DEFAULT_LAYERS = Layers(0.33, 0.66)  # the article's blocks 21-42 of 64


@guarded
def command(
    model: Model,
    protocols: Annotated[
        list[str],
        typer.Argument(metavar="PROTOCOL", help="no_info, with_info, content_report, ... or files of your own."),
    ],
    vector: Annotated[
        list[str], typer.Option("--vector", metavar="[NAME=]F", help="A concept and its vector; give it several times.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results and finished cells.")
    ],
    strength: Annotated[
        list[float] | None, typer.Option(parser=parse_number, metavar="S", help="Factor of the vector.")
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            parser=parse_number, metavar="F", help="Strength as a fraction of the mean residual norm. 0.1 if not given."
        ),
    ] = None,
    layers: Annotated[
        list[Layers] | None,
        typer.Option(parser=parse_layers, metavar="A-B", help="Steered blocks, or fractions. 0.33-0.66 if not given."),
    ] = None,
    questions: Annotated[
        str, typer.Option(help="controls (the protocol's own and its control questions), own, or a file of questions.")
    ] = "controls",
    nulls: Annotated[int, typer.Option(min=0, help="Random rotations of each vector to compare with.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Run protocols on a model, with concepts injected. Finished cells are kept in DIR and not run again."""
    files = _vector_files(vector)
    if strength and fraction:
        raise typer.BadParameter("give --strength or --fraction, not both")
    asked = _questions(questions)
    import introspect

    chosen = [introspect.load_protocol(protocol) for protocol in protocols]
    for protocol in chosen:
        if Path(protocol.name).name != protocol.name or protocol.name in ("report", "overview"):
            raise ValueError(f"run: a protocol's name becomes a file name, {protocol.name!r} cannot")
    vectors = {name: introspect.ControlVector.load(path) for name, path in files.items()}
    output.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, dtype, device)
    options: dict[str, Any] = {
        "vectors": vectors,
        "strengths": strength or fraction or [DEFAULT_FRACTION],
        "strength_unit": "absolute" if strength else "residual",
        "layers": [tuple(one) for one in layers or [DEFAULT_LAYERS]],
        "questions": asked,
        "nulls": nulls,
        "seed": seed,
        "store": output / "cells.sqlite",
    }
    for protocol in chosen:
        with step_bars() as step, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = introspect.run_experiment(loaded, protocol, **options, progress=step)
        for warning in caught:
            note(f"introspect: {protocol.name}: {warning.message}")
        result.save(output / f"{protocol.name}.json")
        if not json:
            report.show_one(result)
    if json:
        names = {protocol.name for protocol in chosen}
        print_json(report.as_dict([r for r in report.load_folder(output) if r.protocol["name"] in names]))
    else:
        note(f"\nsummary, plots and the page: introspect report {output}")


def _vector_files(given: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.rpartition("=")
        path = Path(file)
        name = name if equals else path.stem
        if not path.is_file():
            raise typer.BadParameter(f"--vector: there is no file {file}")
        if not name or name in files:
            raise typer.BadParameter(f"--vector: every vector needs a name of its own, got {text!r}")
        files[name] = path
    return files


def _questions(text: str) -> list[str] | None:
    if text == "controls":
        return None
    if text == "own":
        return []
    if not Path(text).is_file():
        raise typer.BadParameter(f"--questions is controls, own or a file with one question a line, got {text!r}")
    return [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
