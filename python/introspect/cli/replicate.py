"""``introspect replicate``: a published study on a model, its figures beside ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..output_files import check_file_name
from . import experiment
from .common import (
    ChatTemplateOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    guarded,
    load_model,
    note,
    one,
    parse_layers,
    parse_number,
    parse_strength,
    print_json,
    resumable,
)


def parse_concepts(text: str) -> int | list[str]:
    """ "6", or "Dust,Trees"."""
    if text.isdecimal():
        return int(text)
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise typer.BadParameter(f"it must be a number, or words with commas between, got {text!r}")
    return words


@guarded
def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="An entry of --list, or a file of one.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="M", help="Name, folder, file or hub id.")] = None,
    concepts: Annotated[
        str | None, typer.Option("--concepts", metavar="N", help="How many concepts, or which: Dust,Trees.")
    ] = None,
    vector: Annotated[
        list[str] | None,
        typer.Option("--vector", metavar="[NAME=]F", help="A concept and its vector; of words if none is given."),
    ] = None,
    strength: Annotated[
        list[Any] | None,
        typer.Option(
            parser=one(parse_strength, "--strength"),
            metavar="S",
            help="Factor of the vectors, or a dose: kl=0.5. The entry's if not given.",
        ),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            parser=one(parse_number, "--fraction"), metavar="F", help="Strength as a fraction of the residual norm."
        ),
    ] = None,
    layers: Annotated[
        Layers | None,
        typer.Option(parser=parse_layers, metavar="A-B", help="Steered blocks, or fractions; the entry's if none."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the result and finished readings.")
    ] = None,
    seed: experiment.Seed = 0,
    list_: Annotated[bool, typer.Option("--list", help="The entries and what each asks.")] = False,
    plan: Annotated[bool, typer.Option("--plan", "--dry-run", help="Say how much there is to run.")] = False,
    yes: experiment.Yes = False,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    chat_template: ChatTemplateOption = None,
    ray: experiment.Ray = None,
    json: Json = False,
) -> None:
    """Run a published study on a model, and print ours beside theirs with intervals and what differs."""
    if not list_ and (name is None or model is None):
        raise typer.BadParameter("NAME and --model are needed (or --list)")
    files = experiment.vector_files(vector or [])
    strengths = experiment.strengths(strength, fraction)
    wanted = None if concepts is None else parse_concepts(concepts)
    import introspect

    from ..studies import atlas

    if list_ or name is None or model is None:
        _show_entries(json)
        return
    entry = atlas.entry(name)  # before the model is loaded
    check_file_name(entry.name, "the entry's name")
    options: dict[str, Any] = {
        **strengths,
        "vectors": {word: introspect.ControlVector.load(path) for word, path in files.items()} or None,
        "concepts": wanted,
        "layers": None if layers is None else tuple(layers),
        "seed": seed,
        "store": None if output is None else output / experiment.CELLS,
    }
    loaded = load_model(model, dtype, device, chat_template)
    total = atlas.replicate(entry, loaded, **options, plan=True)
    if plan:
        typer.echo(total)
        return
    note(f"introspect: {total}")
    experiment.agree(total, yes)  # type: ignore[arg-type]
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        resumable(output)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran = atlas.replicate(entry, loaded, **options, long=True, ray=experiment.ray_workers(ray, chat_template))
    for warning in caught:
        note(f"introspect: {warning.message}")
    if output is not None:
        ran.save(output / f"{entry.name}.json")
    if json:
        print_json(ran.summary())
    else:
        typer.echo(str(ran))


def _show_entries(json: bool) -> None:
    from ..studies import atlas

    listed = [atlas.entry(name) for name in atlas.ENTRIES]
    if json:
        print_json([{"name": one.name, "title": one.title, "source": one.source, "asks": one.asks} for one in listed])
        return
    width = max(len(one.name) for one in listed)
    for entry in listed:
        typer.echo(f"{entry.name.ljust(width)}  {entry.asks}")
