"""What ``introspect run`` and ``introspect sweep`` share: options, and runs of several protocols into a folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Dtype, load_model, note

if TYPE_CHECKING:
    from ..results import Result

CELLS = "cells.sqlite"  # the store in a run's folder
RESERVED = ("report", "overview")  # file names of introspect report

Protocols = Annotated[
    list[str],
    typer.Argument(metavar="PROTOCOL", help="no_info, with_info, content_report, ... or files of your own."),
]
Vectors = Annotated[
    list[str], typer.Option("--vector", metavar="[NAME=]F", help="A concept and its vector; give it several times.")
]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results and finished cells.")]
Questions = Annotated[
    str, typer.Option(help="controls (the protocol's own and its control questions), own, or a file of questions.")
]
Controls = Annotated[
    str | None,
    typer.Option(
        metavar="CONVERSATION",
        help="Where control questions are asked: own (the protocol's own conversation, the default), with_info (as in "
        "the article, always after its long introduction) or another protocol.",
    ),
]
Nulls = Annotated[int, typer.Option(min=0, help="Random rotations of each vector to compare with.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the rotations and of sampled text.")]


def strengths(given: list[float] | None, fractions: list[float] | None) -> dict[str, Any]:
    """The arguments of run_experiment for --strength and --fraction."""
    if given and fractions:
        raise typer.BadParameter("give --strength or --fraction, not both")
    if not given and not fractions:
        return {}  # run_experiment's own default
    return {"strengths": given or fractions, "strength_unit": "absolute" if given else "residual"}


def vector_files(given: list[str]) -> dict[str, Path]:
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


def control_questions(text: str) -> list[str] | None:
    if text == "controls":
        return None
    if text == "own":
        return []
    if not Path(text).is_file():
        raise typer.BadParameter(f"--questions is controls, own or a file with one question a line, got {text!r}")
    return [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]


def load_protocols(sources: list[str]) -> list[Any]:
    import introspect

    protocols = [introspect.load_protocol(source) for source in sources]
    for protocol in protocols:
        if Path(protocol.name).name != protocol.name or protocol.name in RESERVED:
            raise ValueError(f"a protocol's name becomes a file name, {protocol.name!r} cannot")
    return protocols


def run_protocols(
    model: str,
    protocols: list[Any],
    output: Path,
    *,
    dtype: Dtype,
    device: str,
    progress: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
    options: Callable[[Any], dict[str, Any]],
    show: Callable[[Result], None],
) -> None:
    """Run protocols into a folder: finished cells in its store, each protocol's result as soon as it is complete.

    Args:
        options: the arguments of run_experiment for the loaded model.
        show: called with every result.
    """
    import introspect

    output.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, dtype, device)
    arguments = options(loaded)
    for protocol in protocols:
        with progress() as step, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = introspect.run_experiment(loaded, protocol, **arguments, store=output / CELLS, progress=step)
        for warning in caught:
            note(f"introspect: {protocol.name}: {warning.message}")
        result.save(output / f"{protocol.name}.json")
        show(result)
