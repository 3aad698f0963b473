"""``introspect sae convert``: a dictionary in the format of another library."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .common import MOST, Dtype, guarded


class Format(str, Enum):
    """What is written."""

    saelens = "saelens"
    circuit_tracer = "circuit_tracer"


@guarded
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A dictionary's file or folder, of any format; or a release, with the id after it."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="The folder to write; made if needed.")],
    sae_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of a release: SAELens's names.")] = None,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.saelens,
    layer: Annotated[int | None, typer.Option(min=0, max=MOST, help="Of a folder with a file for each layer.")] = None,
    k: Annotated[int | None, typer.Option(min=1, max=MOST, help="Of a top-k file that does not say it.")] = None,
    input_scale: Annotated[
        float | None, typer.Option(metavar="S", help="Of a file whose inputs were scaled by a number it does not say.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of what is written; that of the source if not given.")] = None,
) -> None:
    """Write a dictionary as SAELens reads it, or as one layer of circuit-tracer's transcoders."""
    from ..sae import SAE, files

    loaded = SAE.from_pretrained(
        source, sae_id, layer=layer, k=k, input_scale=input_scale, dtype=dtype.value if dtype else None
    )
    files.save(loaded, output, format=to.value)
    typer.echo(f"{output}: {loaded}")
