"""``introspect generate``: continue a prompt, steered if asked."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    Model,
    guarded,
    load_model,
    parse_layers,
    parse_number,
    print_json,
)


@guarded
def command(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text, or - to read it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message in a chat.")] = False,
    vector: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, metavar="F", help="A control vector to steer with.")
    ] = None,
    strength: Annotated[float, typer.Option(parser=parse_number, metavar="S", help="Factor of the vector.")] = 1.0,
    layers: Annotated[
        Layers | None,
        typer.Option(parser=parse_layers, metavar="A-B", help="Blocks to steer; all it has if not given."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 keeps all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Continue a prompt; the text is printed as it comes."""
    if vector is None and layers is not None:
        raise typer.BadParameter("--layers needs a --vector to steer with")
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load_model(model, dtype, device)
    if chat:
        text = loaded.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    printed: list[str] = []

    def stream(row: int, piece: str) -> None:
        printed.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    with _steering(loaded, vector, strength, layers):
        answer = loaded.generate(
            text,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            on_text=None if json else stream,
        )
    if json:
        print_json({"model": loaded.name, "prompt": text, "text": answer})
    else:
        typer.echo(answer.removeprefix("".join(printed)))  # what a stream of whole characters held back, and a newline


def _steering(model, path: Path | None, strength: float, layers: Layers | None):
    if path is None:
        return contextlib.nullcontext()
    import introspect

    vector = introspect.ControlVector.load(path)
    blocks = layers.blocks(model.cfg.n_layers) if layers else None
    return model.steer(strength * vector, layers=blocks)
