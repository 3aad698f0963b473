"""``introspect graph``: attribution graphs from a prompt to a picture, one function a command."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import step_bars
from ..tables import FORMATS, print_lines, print_table, write_table
from .common import (
    MOST,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    guarded,
    load_model,
    note,
    output_file,
    print_json,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..circuits import AttributionGraph

app = typer.Typer(help="Attribution graphs: which features made a model say what it says.", no_args_is_help=True)
FILES = (".safetensors", ".json")
PICTURES = (".svg",)
SHOWN = 15  # nodes of a table

GraphArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, metavar="GRAPH", help="A .safetensors, .json or .pt of a graph.")
]
TranscodersOption = Annotated[
    Path | None,
    typer.Option(
        "--transcoders",
        exists=True,
        metavar="FOLDER",
        help="With layer_0.safetensors and so on, a folder for each layer, or a cross-layer transcoder.",
    ),
]
SaesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--sae",
        exists=True,
        metavar="PATH",
        help="An SAE of hook_attn_out or hook_resid_post, which stands in for what it reads; several times.",
    ),
]
InputOption = Annotated[
    str | None, typer.Option(metavar="P", help="Where they read: residual, normalized or mlp; else as the files say.")
]
NodeThreshold = Annotated[
    float, typer.Option("--nodes", min=0, max=1, metavar="S", help="Share of all influence that nodes keep.")
]
EdgeThreshold = Annotated[
    float, typer.Option("--edges", min=0, max=1, metavar="S", help="Share of their influence that edges keep.")
]


@app.command()
@guarded
def attribute(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text whose next token is explained.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="F", help="The .safetensors or .json to write.")],
    transcoders: TranscodersOption = None,
    saes: SaesOption = None,
    input: InputOption = None,
    logits: Annotated[int, typer.Option(min=1, max=MOST, help="Likeliest next tokens that are targets, at most.")] = 10,
    features: Annotated[int, typer.Option(min=0, max=MOST, help="Features that get a row, at most.")] = 7500,
    edges_per_row: Annotated[int, typer.Option(min=0, max=MOST, help="Features that a row keeps; 0: all.")] = 4096,
    memory: Annotated[
        int, typer.Option(min=1, max=1 << 30, metavar="MIB", help="Memory beside model, transcoders and result.")
    ] = 2048,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, metavar="S", help="That rows may take, by an estimate before them."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep rows beside OUT (.rows) until it is written, and go on from them.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and end.")] = False,
    biases: Annotated[bool, typer.Option("--biases", help="Keep nodes of biases in a .json.")] = False,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Make the graph of a prompt: one forward pass, then rows from the likeliest next tokens down."""
    output_file(out, FILES)
    from ..circuits import attribute

    read, cut = load_dictionaries(transcoders, saes)
    loaded = load_model(model, dtype, device)
    options: dict[str, Any] = {
        "saes": cut,
        "input": input,
        "max_logits": logits,
        "max_features": features,
        "edges_per_row": edges_per_row,
        "memory_budget": memory << 20,
        "time_budget": seconds,
        "name": ", ".join(path.name for path in (*([transcoders] if transcoders else []), *(saes or []))),
    }
    if plan:
        found = attribute(loaded, prompt, read, plan=True, **options)
        print_json(asdict(found)) if json else print(found)
        return
    rows = out.with_suffix(".rows") if resume else None
    with step_bars() as step:
        graph = attribute(loaded, prompt, read, resume=rows, progress=step, **options)
    _write(graph, out, biases)
    if rows is not None:
        for file in rows.glob("rows_*.safetensors"):
            file.unlink()
        with contextlib.suppress(OSError):  # what else is in it stays
            rows.rmdir()
    _report(graph, json)


@app.command()
@guarded
def prune(
    graph: GraphArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="F", help="The .safetensors, .json or .svg to write.")],
    nodes: NodeThreshold = 0.8,
    edges: EdgeThreshold = 0.98,
    json: Json = False,
) -> None:
    """Leave out the nodes and edges that carry little."""
    output_file(out, FILES + PICTURES)
    small = _load(graph).prune(nodes, edges)
    _write(small, out)
    _report(small, json)


@app.command()
@guarded
def show(
    graph: GraphArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F", help="A picture (.svg) or table (.csv, .parquet).")
    ] = None,
    nodes: NodeThreshold = 0.8,
    edges: EdgeThreshold = 0.98,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Nodes that are shown.")] = SHOWN,
    json: Json = False,
) -> None:
    """Show a graph's scores and its most influential nodes; a picture is of the pruned graph."""
    if out is not None:
        output_file(out, PICTURES + FORMATS)
    whole = _load(graph)
    table = whole.to_pandas().sort_values("influence", ascending=False, kind="stable")
    if json:
        print_json({**_facts(whole), "nodes": table.head(top).to_dict("records")})
    else:
        _say(whole)
        columns = ["kind", "layer", "position", "feature", "value", "name", "influence"]
        _table(table[table.kind != "logit"][columns].head(top))
    if out is not None and out.suffix in PICTURES:
        _write(whole.prune(nodes, edges), out)
    elif out is not None:
        write_table(table, out)
        note(f"wrote {out}")


@app.command()
@guarded
def compare(
    first: GraphArgument,
    second: GraphArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F", help="A table of all nodes (.csv, .parquet).")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Nodes that are shown of each kind of change.")] = 10,
    json: Json = False,
) -> None:
    """Compare two graphs: clean and injected, or a model and its fine-tuned copy; positions count from the end."""
    if out is not None:
        output_file(out, FORMATS)
    from ..circuits import compare

    found = compare(_load(first), _load(second))
    if json:
        rose, fell = (table.to_dict("records") for table in (found.rose(top), found.fell(top)))
        print_json({**found.to_dict(), "rose": rose, "fell": fell})
    else:
        from rich.console import Console

        print_table(Console(), ["measure", "value"], [[name, f"{one:.4g}"] for name, one in found.to_dict().items()])
        columns = ["kind", "layer", "position", "feature", "name", "influence_first", "influence_second", "change"]
        for title, table in (("rose", found.rose(top)), ("fell", found.fell(top))):
            print_lines(Console(), ["", f"Influence that {title}"])
            _table(table[columns])
    if out is not None:
        write_table(found.nodes, out)
        note(f"wrote {out}")


@app.command()
@guarded
def validate(
    model: Model,
    graph: GraphArgument,
    transcoders: TranscodersOption = None,
    saes: SaesOption = None,
    features: Annotated[int, typer.Option(min=2, max=MOST, help="Features of most influence that are taken out.")] = 40,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F", help="A table of the features (.csv, .parquet).")
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Take features out of the model one by one, and compare what happens with what the graph says."""
    if out is not None:
        output_file(out, FORMATS)
    from ..circuits import validate

    read = _load(graph)
    layers, cut = load_dictionaries(transcoders, saes)
    loaded = load_model(model, dtype, device)
    with step_bars() as step:
        found = validate(loaded, read, layers, saes=cut, n=features, progress=step)
    measures = {name: getattr(found, name) for name in ("correlation", "rank_correlation", "slope", "null_ratio")}
    if json:
        print_json({**measures, "features": found.table.to_dict("records")})
    else:
        _table(found.table.head(SHOWN))
        said = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in measures.items())
        from rich.console import Console

        print_lines(Console(), ["", said])
    if out is not None:
        write_table(found.table, out)
        note(f"wrote {out}")


def load_dictionaries(transcoders: Path | None, saes: Sequence[Path] | None) -> tuple[Any, list[Any]]:
    """Transcoders, None for none, and SAEs.

    Raises:
        ValueError: neither was given.
    """
    from ..sae import files

    if transcoders is None and not saes:
        raise ValueError("graph: dictionaries are needed: --transcoders FOLDER, --sae PATH or both")
    return None if transcoders is None else load_transcoders(transcoders), [files.load(path) for path in saes or []]


def load_transcoders(folder: Path) -> Any:
    """{layer: dictionary} or a cross-layer transcoder, of a folder of any of the forms that are read.

    Raises:
        ConfigError: nothing of the kind is in it.
    """
    from .. import _C
    from ..sae import files

    if _C.dictionary_layers(str(folder)):
        return files.load_layers(folder)
    if any(folder.glob("W_enc_*.safetensors")) or any(folder.glob("params_layer_*.safetensors")):
        return files.load_cross_layer(folder)
    layers: dict[int, Any] = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not any(path.is_file() for path in inside.iterdir()):
            continue
        one = files.load(inside)
        layer = _layer_of(one, inside)
        if layer in layers:
            raise _C.ConfigError(f"graph: two transcoders of {folder} are of layer {layer}")
        layers[layer] = one
    if not layers:
        raise _C.ConfigError(
            f"graph: {folder} must hold layer_0.safetensors and so on, a folder for each layer, or a cross-layer "
            f"transcoder (W_enc_0.safetensors or params_layer_0.safetensors and so on)"
        )
    return layers


def _layer_of(dictionary: Any, folder: Path) -> int:
    from .. import _C

    sites = dictionary.origin.inputs
    parts = (sites[0].hook_name if sites else "").split(".")
    if len(parts) < 2 or parts[0] != "blocks" or not parts[1].isdigit():
        raise _C.ConfigError(f"graph: {folder} does not say of which layer it is: its hook name is {'.'.join(parts)!r}")
    return int(parts[1])


def _load(path: Path) -> AttributionGraph:
    from ..circuits import AttributionGraph

    return AttributionGraph.load(path)


def _write(graph: AttributionGraph, path: Path, biases: bool = False) -> None:
    if path.suffix in PICTURES:
        from ..output_files import write_text

        write_text(path, graph.svg())
    elif path.suffix == ".json":
        graph.to_json(path, biases=biases)
    else:
        graph.save(path)
    note(f"wrote {path}")


def _facts(graph: AttributionGraph) -> dict[str, Any]:
    return {
        "prompt": graph.prompt,
        "model": graph.model_name,
        "nodes": graph.n_nodes,
        "edges": graph.n_edges,
        "targets": [{"token": node.name, "weight": node.value} for node in graph.nodes if node.kind == "logit"],
        **graph.scores()._asdict(),
        "notes": graph.notes,
    }


def _report(graph: AttributionGraph, json: bool) -> None:
    if json:
        print_json(_facts(graph))
    else:
        _say(graph)


def _say(graph: AttributionGraph) -> None:
    from rich.console import Console

    scores = graph.scores()
    targets = "  ".join(f"{node.name!r} {node.value:.3f}" for node in graph.nodes if node.kind == "logit")
    print_lines(
        Console(),
        [
            f"{graph.prompt!r} in {graph.model_name}: {graph.n_nodes:,} nodes, {graph.n_edges:,} edges",
            f"targets: {targets}",
            f"replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}",
            "",
        ],
    )


def _table(frame: pd.DataFrame) -> None:
    from rich.console import Console

    rows = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.to_numpy()]
    print_table(Console(), [name.replace("_", " ") for name in frame.columns], rows)
