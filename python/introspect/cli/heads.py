"""``introspect heads``: what the attention heads of a model do."""

from __future__ import annotations

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
    print_json,
)
from .outputs import OutputOption, output_files, write_outputs

if TYPE_CHECKING:
    from ..analysis import HeadTable

LOWEST = ("induction_logit", "ov_copying", "ov_diagonal")  # whose other end is of interest too


@guarded
def command(
    model: Model,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="T", help="A text to read instead of random tokens; give it several times."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, max=MOST, help="Random tokens, which are then repeated.")] = 50,
    sequences: Annotated[int, typer.Option(min=1, max=MOST, help="Sequences of random tokens.")] = 4,
    seed: SeedOption = 0,
    threshold: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Attention from which on a head is named after it.")
    ] = 0.4,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Heads that are shown of each score.")] = 5,
    copying: Annotated[bool, typer.Option(help="Read from the weights what heads copy; it takes longest.")] = True,
    output: OutputOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Score and name every head: induction, duplicate, previous and first token, entropy, copying and suppression."""
    files = output_files(output)
    loaded = load_model(model, dtype, device)
    from ..analysis import classify_heads

    with step_bars() as step:
        table = classify_heads(
            loaded,
            text or None,
            n_tokens=tokens,
            n_sequences=sequences,
            seed=seed,
            threshold=threshold,
            copying=copying,
            progress=step,
        )
    if json:
        print_json(_facts(loaded, table, text, {"tokens": tokens, "sequences": sequences, "seed": seed}))
    else:
        _show(table, top)
    pictures = lambda: {"heads": table.plot()}  # noqa: E731
    write_outputs(files, f"Heads of {loaded.name}", table.to_pandas, pictures, [_by_type(table)])


def _facts(model: Any, table: HeadTable, text: list[str] | None, drawn: dict[str, int]) -> dict[str, Any]:
    return {
        "model": model.name,
        "hash": model.hash,
        "texts": text or drawn,
        "threshold": table.threshold,
        "positions": table.n_positions,
        "types": table.counts(),
        "heads": [{"layer": layer, "head": head, **facts} for (layer, head), facts in table.to_dict().items()],
    }


def _show(table: HeadTable, top: int) -> None:
    from rich.console import Console

    rows = []
    for score in table.scores:
        for lowest in (False, True) if score in LOWEST else (False,):
            strongest = table.largest(score, top, smallest=lowest)
            cells = [f"L{layer}H{head} {value:.2f}" for (layer, head), value in strongest]
            rows.append([f"{score}, lowest" if lowest else score, *cells])
    console = Console()
    print_table(console, ["score", *(f"{i + 1}." for i in range(len(rows[0]) - 1))], rows)
    print_lines(console, ["", _by_type(table)])


def _by_type(table: HeadTable) -> str:
    counts = sorted(table.counts().items(), key=lambda item: -item[1])
    return "Heads by type: " + ", ".join(f"{n} {name}" for name, n in counts)
