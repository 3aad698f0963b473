"""``introspect lens``: the next token that every layer names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tables import print_table
from .common import (
    MOST,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    guarded,
    load_model,
    print_json,
)
from .outputs import OutputOption, output_files, write_outputs

if TYPE_CHECKING:
    from ..analysis import LensTable


@guarded
def command(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is read, as it stands: no chat template.")],
    tuned: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            metavar="PATH",
            help="A tuned or Jacobian lens: a folder with params.pt, a .pt or .safetensors file.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="T", help="A text of one token to follow; give it several times."),
    ] = None,
    position: Annotated[
        int, typer.Option(min=-MOST, max=MOST, help="Whose table is shown; negative ones count from the end.")
    ] = -1,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Tokens that are shown of each layer.")] = 5,
    output: OutputOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Read every layer's next token through the logit lens, or a trained one, with its distance from the model's."""
    files = output_files(output)
    loaded = load_model(model, dtype, device)
    from ..analysis import Lens, trajectory

    lens = Lens.load(tuned) if tuned else None
    shown = trajectory(loaded, text, lens=lens, positions=[position], targets=target or [], top_k=top)
    if json:
        print_json(_facts(loaded, text, shown))
    else:
        _show(shown)
    if files:
        whole = trajectory(loaded, text, lens=lens, targets=target or [], top_k=top)
        pictures = lambda: {"lens": whole.plot()}  # noqa: E731
        title = f"{loaded.name} through the {whole.lens} lens"
        write_outputs(files, title, whole.to_pandas, pictures, [text])


def _facts(model: Any, text: str, table: LensTable) -> dict[str, Any]:
    probabilities = table.top_log_probs.exp()
    layers = []
    for i, stream in enumerate(table.streams):
        top = [
            {"token": token, "p": p}
            for token, p in zip(table.top_tokens[i][0], probabilities[i, 0].tolist(), strict=True)
        ]
        targets = {
            name: {"log_prob": float(table.log_probs[name][i, 0]), "rank": int(table.ranks[name][i, 0])}
            for name in table.log_probs
        }
        measures = {name: float(values[i, 0]) for name, values in table.measures.items()}
        layers.append({"stream": stream, "layer": table.layers[i], "top": top, "targets": targets, **measures})
    return {
        "model": model.name,
        "hash": model.hash,
        "lens": table.lens,
        "text": text,
        "position": table.positions[0],
        "token": table.tokens[0],
        "layers": layers,
    }


def _show(table: LensTable) -> None:
    from rich.console import Console

    probabilities = table.top_log_probs.exp()
    rows = []
    for i in reversed(range(len(table.streams))):
        top = [
            f"{token!r} {p:.2f}" for token, p in zip(table.top_tokens[i][0], probabilities[i, 0].tolist(), strict=True)
        ]
        of_targets = [f"{float(table.log_probs[n][i, 0]):.2f} ({int(table.ranks[n][i, 0])})" for n in table.log_probs]
        numbers = [f"{float(table.measures[name][i, 0]):.2f}" for name in ("forward_kl", "entropy")]
        rows.append([table.streams[i], *numbers, *of_targets, *top])
    console = Console()
    targets = [f"log p({name!r}) (rank)" for name in table.log_probs]
    header = ["block", "KL to model", "entropy", *targets, *(f"{k + 1}." for k in range(table.top_log_probs.shape[-1]))]
    print_table(console, header, rows)
    console.print(f"\n{table.lens} lens after {table.tokens[0]!r}, position {table.positions[0]}", highlight=False)
