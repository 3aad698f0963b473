"""``introspect probe``: what can be read of labelled texts at every layer of a model."""

from __future__ import annotations

import csv
import io
import json as jsonlib
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import step_bars
from ..tables import print_lines, print_table
from .common import (
    MOST,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    SeedOption,
    guarded,
    load_model,
    note,
    parse_layers,
    parse_number,
    print_json,
)
from .outputs import output_files, write_outputs

if TYPE_CHECKING:
    from ..analysis import ProbeTable

PROBES = (".safetensors",)


class Kind(str, Enum):
    logistic = "logistic"
    mass_mean = "mass_mean"
    mass_mean_covariance = "mass_mean_covariance"
    ridge = "ridge"


@guarded
def command(
    model: Model,
    data: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, metavar="DATA", help="Labelled texts: .csv or .jsonl.")
    ],
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The column of the texts.")] = "text",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The column of the labels.")] = "label",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The column of what texts share (a subject, a template): kept in one fold."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A-B", help="Block numbers, or fractions of the depth; all if not given.")
    ] = None,
    position: Annotated[
        int, typer.Option(min=-MOST, max=MOST, help="The token that is read; negative: from the end.")
    ] = -1,
    mean: Annotated[bool, typer.Option("--mean", help="Read the mean over each text instead of a token.")] = False,
    kind: Annotated[
        Kind, typer.Option(help="How a probe is made: see introspect.analysis.probe_layers.")
    ] = Kind.logistic,
    penalty: Annotated[
        list[str] | None,
        typer.Option(
            "-C", metavar="C", help="Inverse strength of the penalty; several are chosen among by held-out loss."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=MOST, help="Parts of the texts that are held out in turn.")] = 5,
    nulls: Annotated[int, typer.Option(min=0, max=MOST, help="How often the labels are shuffled.")] = 20,
    seed: SeedOption = 0,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="F",
            help="A picture (.png, .svg, .pdf), table (.csv, .parquet), page (.html) or the best probe (.safetensors).",
        ),
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Probe every layer for what texts are labelled with, beside shuffled labels and what the surface gives."""
    files = output_files(output, PROBES)
    choices = [parse_number(one) for one in penalty or ["1"]]
    span = None if layers is None else parse_layers(layers)
    columns = read_columns(data, [text, label, *([] if group is None else [group])])
    loaded = load_model(model, dtype, device)
    from ..analysis import probe_layers
    from ..arguments import layer_range

    blocks = None
    if span is not None:
        first, last = layer_range(tuple(span), loaded.cfg.n_layers, "introspect probe") or (0, loaded.cfg.n_layers - 1)
        blocks = range(first, last + 1)
    with step_bars() as step:
        table = probe_layers(
            loaded,
            columns[text],
            columns[label],
            groups=None if group is None else columns[group],
            layers=blocks,
            position=(0, None) if mean else position,
            kind=kind.value,
            C=choices,
            folds=folds,
            nulls=nulls,
            seed=seed,
            name=label,
            progress=step,
        )
    if json:
        print_json(_facts(loaded, table, len(columns[text])))
    else:
        _show(table, len(columns[text]))
    for path in [path for path in files if path.suffix in PROBES]:
        table.probe().save(path)
        note(f"wrote {path}")
    others = [path for path in files if path.suffix not in PROBES]
    pictures = lambda: {"layers": table.plot()}  # noqa: E731
    title = f"Probing {loaded.name} for {label}"
    write_outputs(others, title, table.to_pandas, pictures, [_said(table, len(columns[text]))])


def read_columns(path: Path, names: list[str]) -> dict[str, list[str]]:
    """The columns of a .csv or .jsonl file, as texts.

    Raises:
        ValueError: another kind of file, no rows, a row without one of the columns or with an empty cell, or a line
            that is no JSON.
    """
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(content)))
    elif path.suffix == ".jsonl":
        rows = [_parsed(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    else:
        raise ValueError(f"{path}: the data must be .csv or .jsonl")
    if not rows:
        raise ValueError(f"{path}: there are no rows")
    for number, row in enumerate(rows, 1):
        for name in names:
            if row.get(name) is None:
                raise ValueError(f"{path}: row {number} has no column {name}, got {', '.join(map(str, row))}")
            if row[name] == "":
                raise ValueError(f"{path}: row {number} has nothing in column {name}")
    return {name: [str(row[name]) for row in rows] for name in names}


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = jsonlib.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}: line {number} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: line {number} must be an object")
    return row


def _facts(model: Any, table: ProbeTable, n_texts: int) -> dict[str, Any]:
    return {
        "model": model.name,
        "hash": model.hash,
        "kind": table.kind,
        "classes": list(table.classes),
        "n_texts": n_texts,
        "n_groups": table.n_groups,
        "nulls": table.nulls,
        "best": table.best.columns(),
        "rows": [row.columns() for row in table.rows],
        "baselines": {name: row.columns() for name, row in table.baselines.items()},
    }


def _show(table: ProbeTable, n_texts: int) -> None:
    from rich.console import Console

    shown = {
        "AUC": lambda row: f"{row.auc:.3f}",
        "interval": lambda row: f"{row.auc_low:.2f} to {row.auc_high:.2f}",
        "accuracy": lambda row: f"{row.accuracy:.3f}",
        "highest null": lambda row: f"{max(row.null_auc):.3f}" if row.null_auc else "–",
        "p": lambda row: "–" if row.p_auc is None else f"{row.p_auc:.3f}",
        "selectivity": lambda row: "–" if row.selectivity is None else f"{row.selectivity:.2f}",
        "compression": lambda row: "–" if row.compression is None else f"{row.compression:.2f}",
    }
    names = {"length": "text length", "words": "words alone"}
    lines = [(str(row.layer), row) for row in table.rows]
    lines += [(names[what], row) for what, row in table.baselines.items()]
    console = Console()
    print_table(console, ["layer", *shown], [[name, *(cell(row) for cell in shown.values())] for name, row in lines])
    print_lines(console, ["", _said(table, n_texts)])


def _said(table: ProbeTable, n_texts: int) -> str:
    best = table.best
    groups = "" if table.n_groups is None else f" in {table.n_groups} groups"
    said = f"{n_texts} texts{groups}, {' against '.join(table.classes)}: best at layer {best.layer}, AUC {best.auc:.3f}"
    if best.p_auc is not None:
        said += f"; p = {best.p_auc:.3f} of as much at any layer under {table.nulls} shuffles of the labels"
    return said
