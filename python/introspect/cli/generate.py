"""``introspect generate``: continue a prompt, steered if asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import (
    MOST,
    ChatTemplateOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    Model,
    SeedOption,
    check_text,
    guarded,
    load_model,
    note,
    parse_layers,
    parse_number,
    parse_strength,
    print_json,
)

LONG_PROMPT = 128
"""Tokens: of a longer prompt a strength is looked for on a short one."""


@guarded
def command(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text, or - to read it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message in a chat.")] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message before it; means --chat.")
    ] = None,
    chat_template: ChatTemplateOption = None,
    vector: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, metavar="F", help="A control vector to steer with.")
    ] = None,
    strength: Annotated[
        Any,
        typer.Option(
            parser=parse_strength,
            metavar="S",
            help="Factor of the vector, or a dose that is solved for on everyday prompts: coherent (the largest at "
            "which text stays coherent), kl=0.5 (nats), sd=2. If not given: about the largest at which this prompt's "
            "text stays coherent (of more than 128 tokens: an everyday prompt's).",
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            parser=parse_number,
            metavar="F",
            help="Instead of it: strength as a fraction of the median residual norm; try 0.1 to 0.5.",
        ),
    ] = None,
    layers: Annotated[
        Layers | None,
        typer.Option(parser=parse_layers, metavar="A-B", help="Blocks to steer; all it has if not given."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, max=MOST, help="Texts to draw; more than one needs --temperature.")
    ] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST)] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, max=MOST, help="0 keeps all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.0)] = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Continue a prompt; the text is printed as it comes, and several samples when all are there."""
    for given, name in ((layers, "--layers"), (strength, "--strength"), (fraction, "--fraction")):
        if vector is None and given is not None:
            raise typer.BadParameter(f"{name} needs a --vector to steer with")
    if strength is not None and fraction is not None:
        raise typer.BadParameter("give --strength or --fraction, not both")
    if samples > 1 and temperature == 0:
        raise typer.BadParameter("several samples need a --temperature above 0: without one all are the same text")
    text = sys.stdin.read() if prompt == "-" else prompt
    check_text({"PROMPT": text})
    loaded = load_model(model, dtype, device, chat_template)
    if chat or system is not None:
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = loaded.apply_chat_template(messages, add_generation_prompt=True)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }
    with _steering(loaded, text, vector, strength, fraction, layers):
        if samples == 1:
            answers = _stream(loaded, text, options, seed, json)
        else:  # in one batch, whose rows draw from streams of their own
            answers = loaded.generate([text] * samples, **options, seed=seed)
    if json:
        print_json({"model": loaded.name, "prompt": text, "text": answers[0], "samples": answers})
    elif samples > 1:
        for i, answer in enumerate(answers, start=1):
            typer.echo(f"--- {i} of {samples}\n{answer}")


def _stream(model: Any, text: str, options: dict[str, Any], seed: int, quiet: bool) -> list[str]:
    printed: list[str] = []

    def stream(row: int, piece: str) -> None:
        printed.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    answer = model.generate(text, **options, seed=seed, on_text=None if quiet else stream)
    if not quiet:
        typer.echo(answer.removeprefix("".join(printed)))  # what a stream of whole characters held back, and a newline
    return [answer]


def _steering(
    model: Any,
    prompt: str,
    path: Path | None,
    strength: float | str | None,
    fraction: float | None,
    layers: Layers | None,
) -> contextlib.AbstractContextManager:
    if path is None:
        return contextlib.nullcontext()
    import introspect

    from ..experiments.doses import stock_prompts

    vector = introspect.ControlVector.load(path)
    if fraction is not None:
        return model.steer(vector, layers=layers, strength=fraction, unit="residual")
    if strength is not None and not isinstance(strength, str):
        return model.steer(strength * vector, layers=layers)
    blocks = layers or (min(vector.layers), max(vector.layers))
    if strength is None:
        is_long = len(model.to_tokens(prompt)[0]) > LONG_PROMPT
        prompts: Any = stock_prompts(model)[:1] if is_long else [prompt]
        told = _once("introspect: looks for a strength at which the text stays coherent ...")
        options: dict[str, Any] = {"max_new_tokens": 24, "fine": False, "progress": told}
        solved = introspect.coherent_window(model, vector, prompts, layers=blocks, **options).largest
    else:
        told = _once(f"introspect: looks for the strength of {strength} on everyday prompts ...")
        solved = introspect.solve_strength(model, vector, target=strength, layers=blocks, progress=told)
    note(f"introspect: it is {solved:.3g} residual norms of this vector (--fraction {solved:.3g} is quicker)")
    return model.steer(vector, layers=layers, strength=solved, unit="residual")


def _once(text: str) -> Callable[[str, int, int], None]:
    """Notes the text when work begins: what cannot be done is refused before."""
    told: list[str] = []

    def progress(*_: Any) -> None:
        if not told:
            told.append(text)
            note(text)

    return progress
