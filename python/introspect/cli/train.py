"""``introspect train``: a control vector for a concept."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data import load_suffixes, load_words
from ..progress import step_bars
from .common import (
    ChatTemplateOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    guarded,
    load_model,
    output_file,
    print_json,
)


class Method(str, Enum):
    pca_center = "pca_center"
    pca_global_center = "pca_global_center"
    pca_diff = "pca_diff"
    pca_diff_uncentered = "pca_diff_uncentered"
    lat = "lat"
    mean_diff = "mean_diff"
    logistic = "logistic"


@guarded
def command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="F", help="A .gguf or .safetensors file.")],
    concept: Annotated[
        str | None, typer.Option(help="The word: “Please talk about {concept}.” against “anything”, in pairs.")
    ] = None,
    word: Annotated[
        str | None, typer.Option(help="Instead of it: this word less the mean of other words; quick, one text a word.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The other words of --word; 100 if not given."),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instead of them, with --negative: two requests of your own,")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="such as “Be cheerful.” against “Be gloomy.”, in pairs.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What the words are put into: {concept} with --concept, {word} with --word (several are averaged).",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="First component (pca_*, lat), mean difference or logistic regression; see ControlVector.train."
        ),
    ] = Method.pca_center,
    suffixes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Beginnings of answers (JSON list or lines)."),
    ] = None,
    chat_template: ChatTemplateOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Train a control vector for a concept and write it to a file.

    Of pairs of texts (--concept, or --positive and --negative), or of one word against others (--word).
    """
    output_file(output, (".gguf", ".safetensors"))
    requests = _requests(concept, word, positive, negative, template or [])
    for given, name in ((suffixes, "--suffixes"), (method != Method.pca_center, "--method")):
        if word is not None and given:
            raise typer.BadParameter(f"{name} goes with pairs, and --word needs none")
    if baseline is not None and word is None:
        raise typer.BadParameter("--baseline goes with --word")
    beginnings = [] if word is not None else load_suffixes(suffixes)
    others = _words(baseline)
    import introspect

    loaded = load_model(model, dtype, device, chat_template)
    with step_bars() as step:
        if word is not None:
            options: dict[str, Any] = {"template": template} if template else {}
            vector = introspect.ControlVector.train_words(
                loaded, word, [other for other in others if other != word], **options, progress=step
            )
        else:
            name = concept or positive or ""
            pairs = {name: _pairs(loaded, requests, beginnings)}
            vector = introspect.ControlVector.train_many(loaded, pairs, method=method.value, progress=step)[name]
    vector.save(output)
    if json:
        facts = {"path": str(output), "concept": concept or word or positive, "layers": sorted(vector.directions)}
        print_json({**facts, "pairs": None if word is not None else len(beginnings) * len(requests)})
    else:
        typer.echo(output)


DEFAULT_TEMPLATE = "Please talk about {concept}."
BASELINE = "anything"  # stands in the concept's place in the other half of a pair


def _requests(
    concept: str | None, word: str | None, positive: str | None, negative: str | None, templates: list[str]
) -> list[tuple[str, str]]:
    """What is asked for and what is not; none for a single word, which needs no pairs."""
    ways = [concept is not None, word is not None, positive is not None or negative is not None]
    if sum(ways) != 1:
        raise typer.BadParameter("give one of --concept, --word, and --positive with --negative")
    for name, text in (("--concept", concept), ("--word", word), ("--positive", positive), ("--negative", negative)):
        if text is not None and not text.strip():
            raise typer.BadParameter(f"{name} is empty")
    place = "{word}" if word is not None else "{concept}"
    if wrong := [template for template in templates if place not in template]:
        raise typer.BadParameter(f"--template needs {place} in it, got {wrong[0]!r}")
    if concept is not None:
        return [
            (template.replace("{concept}", concept), template.replace("{concept}", BASELINE))
            for template in templates or [DEFAULT_TEMPLATE]
        ]
    if word is not None:
        return []
    if positive is None or negative is None:
        raise typer.BadParameter("--positive and --negative belong together")
    if templates:
        raise typer.BadParameter("--template goes with --concept or --word")
    return [(positive, negative)]


def _pairs(model: Any, requests: list[tuple[str, str]], suffixes: list[str]) -> list[tuple[str, str]]:
    """Chats with an empty system message, a request and the beginning of an answer, as introspect.concept_pairs has."""

    def chat(request: str, suffix: str) -> str:
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": request}]
        return model.apply_chat_template(messages, add_generation_prompt=True) + suffix

    return [(chat(positive, suffix), chat(negative, suffix)) for positive, negative in requests for suffix in suffixes]


def _words(path: Path | None) -> list[str]:
    if path is None:
        return load_words("baseline")
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        raise typer.BadParameter(f"--baseline: {path} holds no words")
    return words
