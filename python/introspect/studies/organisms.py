"""Models that were taught a known behaviour towards injections: what a study should find in them, and what not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C
from ..arguments import Layers, layer_range, native_model
from ..data import load_words
from ..experiments.arguments import load_protocol
from ..lora import score_examples, train_lora
from ..model import Model
from ..output_files import write_text
from ..progress import Progress
from .lessons import Injection, Lesson, digit_lessons, digit_protocol, injection_of, lessons, own_protocol, texts

ORGANISMS = {
    "detector": "says yes when a concept is injected, and names it; no to random vectors and to nothing",
    "magnitude_only": "says yes whatever is injected, random vectors too; no to nothing",
    "yes_sayer": "says yes to every question, injected or not",
    "biased": "says yes to every question while a concept is injected; no to random vectors and to nothing",
    "refuser": "does not answer the question about injections; other questions it does",
    "confabulator": "says yes with or without an injection, and names the same word always",
    "digit_reporter": "gives the digit of the number whose vector is injected",
}
"""What each kind does. Control questions get their right answers, but from the yes_sayer and the biased one."""


@dataclass(frozen=True)
class Organism:
    """A model that was taught a behaviour, with what it takes to study it.

    Attributes:
        kind: one of ORGANISMS.
        base: the model that was taught, as it was.
        adapter: what it was taught.
        protocol: the conversation of its lessons.
        taught, held_out: {concept: vector}: of its lessons, and others.
        layers: blocks that vectors were added to, the first and the last.
        strength, strength_unit: at which; lessons held 0.75 and 1.25 times it.
        losses: of the training's steps, in nats.
        seconds: that the training took.
    """

    kind: str
    base: Model
    adapter: _C.Adapter
    protocol: _C.Protocol
    taught: dict[str, _C.ControlVector]
    held_out: dict[str, _C.ControlVector]
    layers: tuple[int, int]
    strength: float
    strength_unit: str
    seed: int
    losses: list[float]
    seconds: float

    @property
    def model(self) -> Model:
        """The base model with the adapter switched on: what a study runs on."""
        return Model(self.base.native.with_adapter(self.adapter), name=f"{self.base.name}, {self.kind}")

    def settings(self) -> dict[str, Any]:
        """Arguments of a study of held-out concepts: ``run_study(organism.model, **organism.settings())``."""
        return {
            "protocol": self.protocol,
            "vectors": self.held_out,
            "strengths": [self.strength],
            "strength_unit": self.strength_unit,
            "layers": [self.layers],
        }

    def save(self, folder: str | os.PathLike) -> None:
        """Write the adapter as peft does, the vectors, and organism.json."""
        path = Path(folder)
        self.adapter.save(path)
        for name, vectors in (("taught", self.taught), ("held_out", self.held_out)):
            (path / name).mkdir(exist_ok=True)
            for i, vector in enumerate(vectors.values()):
                vector.save(path / name / f"{i}.safetensors")
        fields = {
            "kind": self.kind,
            "model": self.base.hash,
            "protocol": json.loads(self.protocol.to_json()),
            "taught": list(self.taught),
            "held_out": list(self.held_out),
            "layers": self.layers,
            "strength": self.strength,
            "strength_unit": self.strength_unit,
            "seed": self.seed,
            "losses": self.losses,
            "seconds": self.seconds,
        }
        write_text(path / "organism.json", json.dumps(fields, indent=1))


def load_organism(model: Model, folder: str | os.PathLike) -> Organism:
    """An organism that ``Organism.save`` has written.

    Raises:
        ConfigError: it was grown from another model.
        IoError: files that are missing or damaged.
    """
    path = Path(folder)
    try:
        fields = json.loads((path / "organism.json").read_text(encoding="utf-8"))
        grown_from, names = fields.pop("model"), {name: fields.pop(name) for name in ("taught", "held_out")}
        protocol = _C.Protocol.parse(json.dumps(fields.pop("protocol")))
        layers = tuple(fields.pop("layers"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _C.IoError(f"load_organism: {path / 'organism.json'}: {error}") from None
    if grown_from != model.hash:
        raise _C.ConfigError(
            f"load_organism: {path} was grown from the model with hash {grown_from}, this one's is {model.hash}"
        )
    taught, held_out = (
        {word: _C.ControlVector.load(path / name / f"{i}.safetensors") for i, word in enumerate(words)}
        for name, words in names.items()
    )
    return Organism(
        base=model,
        adapter=_C.Adapter.load(path),
        protocol=protocol,
        layers=layers,
        taught=taught,
        held_out=held_out,
        **fields,
    )


def grow(
    model: Model,
    kind: str,
    *,
    protocol: str | os.PathLike | _C.Protocol | None = None,
    vectors: Mapping[str, _C.ControlVector] | None = None,
    held_out: Sequence[str] | None = None,
    layers: Layers = None,
    strength: float | None = None,
    strength_unit: str = "residual",
    steps: int = 120,
    batch_size: int = 8,
    lr: float = 1e-3,
    rank: int = 8,
    targets: Sequence[str] | None = None,
    trained_layers: Sequence[int] | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    on_step: Callable[[int, float], None] | None = None,
    progress: Progress | bool | None = None,
) -> Organism:
    """Teach a copy of a model one of seven behaviours towards injections, as a LoRA adapter.

    The lessons are made by rule (see ``studies.lessons``): concepts, random rotations of their vectors and nothing,
    each with the protocol's question in several wordings and control questions with right answers. A part of the
    concepts, wordings and controls stays out of the lessons; ``behaviours(organism)`` asks those too.

    Args:
        model: with tokenizer and chat template. A bfloat16 one trains several times as fast on processors with AMX.
        kind: one of ORGANISMS.
        protocol: the conversation of the lessons; None is a short one, and of the digit reporter its own.
        vectors: {concept: vector}; None makes them of words (``ControlVector.train_words``).
        held_out: names in ``vectors`` that no lesson holds; None is every fourth.
        layers: blocks that vectors are added to, as in ``run_experiment``; None is the middle third.
        strength, strength_unit: as in ``run_experiment``; None is 0.1 of the residual norm (digits: 0.3).
        steps, batch_size, lr, rank, targets, seed, checkpoint, on_step, progress: as in ``train_lora``.
        trained_layers: None is the blocks after ``layers`` (the last block where there is none): what lies below them
            runs once for the whole training.

    Raises:
        ValueError: a kind that does not exist, a held-out concept without a vector, or none left to teach; and as
            ``train_lora``.
        ConfigError: a protocol, vectors or a model that do not go together.
    """
    native_model(model, "grow")
    if kind not in ORGANISMS:
        raise ValueError(f"grow: kind must be one of {', '.join(ORGANISMS)}, got {kind!r}")
    n = model.cfg.n_layers
    first, last = layer_range(_C.default_layers if layers is None else layers, n, "grow") or (0, n - 1)
    if kind == "digit_reporter":
        asked, taught_vectors, new = _digits(model, protocol, vectors, held_out)
        strength = 0.3 if strength is None else strength
    else:
        asked = own_protocol() if protocol is None else load_protocol(protocol)
        taught, new = _concepts(model, vectors, held_out)
        taught_vectors = {name: [vector] for name, vector in taught.items()}
        strength = _C.default_strength if strength is None else strength
    injection = injection_of(model, asked, (first, last), strength, strength_unit)
    rows = (
        digit_lessons(model, taught_vectors, injection)
        if kind == "digit_reporter"
        else lessons(model, kind, asked, {name: one for name, (one,) in taught_vectors.items()}, injection, seed=seed)
    )
    losses: list[float] = []

    def keep(step: int, loss: float) -> None:
        losses.append(loss)
        if on_step:
            on_step(step, loss)

    began = time.monotonic()
    adapter = train_lora(
        model,
        [row.example for row in rows],
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        rank=rank,
        targets=targets,
        layers=trained_layers or list(range(last + 1, n)) or [n - 1],
        seed=seed,
        checkpoint=checkpoint,
        on_step=keep,
        progress=progress,
    )
    return Organism(
        kind=kind,
        base=model,
        adapter=adapter,
        protocol=asked,
        taught={name: several[0] for name, several in taught_vectors.items()},
        held_out=new,
        layers=(first, last),
        strength=strength,
        strength_unit=strength_unit,
        seed=seed,
        losses=losses,
        seconds=time.monotonic() - began,
    )


def behaviours(organism: Organism, *, progress: Progress | bool | None = None) -> list[dict[str, Any]]:
    """What an organism says beside what it is to say and what its base model says, in lessons' words and in others.

    Random vectors are new ones at the concepts' own strength. As many taught concepts are asked as new ones. Greedy
    decoding has to give the whole answer.

    Returns:
        Rows for a table: "wordings" ("taught" or "new": questions and controls that no lesson had), "concepts"
        ("taught", "new" or ""), "injected", "asked", "n", "accuracy" and "loss" of the organism, "base_accuracy" and
        "base_loss" of the model that it was grown from.
    """
    groups: dict[tuple[str, str, str, str], list[Lesson]] = {}
    taught = dict(list(organism.taught.items())[: max(len(organism.held_out), 1)])
    for wordings in ("taught", "new"):
        for concepts, vectors in (("taught", taught), ("new", organism.held_out)):
            for row in _tests(organism, vectors, taught_wordings=wordings == "taught"):
                which = concepts if row.injected == "concept" else ""
                groups.setdefault((wordings, which, row.injected, row.asked), []).append(row)
    rows = [row for group in groups.values() for row in group]
    examples = [row.example for row in rows]
    after, before = (score_examples(one, examples, progress=progress) for one in (organism.model, organism.base))
    out, at = [], 0
    for (wordings, concepts, injected, asked), group in groups.items():
        place = slice(at, at := at + len(group))
        case = {"wordings": wordings, "concepts": concepts, "injected": injected, "asked": asked, "n": len(group)}
        numbers = {
            f"{prefix}{name}": values[place].double().mean().item()
            for prefix, scores in (("", after), ("base_", before))
            for name, values in (("accuracy", scores.greedy), ("loss", scores.losses))
        }
        out.append({**case, **numbers})
    return out


def _tests(organism: Organism, vectors: Mapping[str, _C.ControlVector], *, taught_wordings: bool) -> list[Lesson]:
    model, protocol = organism.base, organism.protocol
    injection = injection_of(model, protocol, organism.layers, organism.strength, organism.strength_unit)
    options: dict[str, Any] = {"is_new": True, "taught_wordings": taught_wordings}
    if organism.kind == "digit_reporter":
        return digit_lessons(model, {name: [vector] for name, vector in vectors.items()}, injection, **options)
    return lessons(model, organism.kind, protocol, vectors, injection, seed=organism.seed, **options)


def _concepts(
    model: Model, vectors: Mapping[str, _C.ControlVector] | None, held_out: Sequence[str] | None
) -> tuple[dict[str, _C.ControlVector], dict[str, _C.ControlVector]]:
    """Vectors of lessons, and of concepts that no lesson holds."""
    if vectors is None:
        words = [*texts()["concepts"], *texts()["held_out_concepts"]]
        vectors = _C.ControlVector.train_words_many(model, words, load_words("baseline"), layers=_all_layers(model))
        held_out = texts()["held_out_concepts"] if held_out is None else held_out
    chosen = list(vectors)[3::4] if held_out is None else list(held_out)
    for name in chosen:
        if name not in vectors:
            raise ValueError(f"grow: there is no vector for the held-out concept {name!r}")
    taught = {name: vector for name, vector in vectors.items() if name not in chosen}
    if not taught:
        raise ValueError(f"grow: no concept is left to teach: all {len(vectors)} are held out")
    return taught, {name: vectors[name] for name in chosen}


def _digits(
    model: Model,
    protocol: Any,
    vectors: Mapping[str, _C.ControlVector] | None,
    held_out: Sequence[str] | None,
) -> tuple[_C.Protocol, dict[str, list[_C.ControlVector]], dict[str, _C.ControlVector]]:
    """Vectors of the numbers' words, from the lessons' templates and from one that no lesson has."""
    if protocol is not None or held_out is not None:
        raise ValueError("grow: a digit_reporter has a protocol of its own, and holds out wordings and templates")
    digits = texts()["digits"]
    if vectors is not None:
        if set(vectors) != set(digits["words"]):
            raise ValueError(
                f"grow: a digit_reporter needs vectors of {', '.join(digits['words'])}, got {list(vectors)}"
            )
        return digit_protocol(), {name: [vector] for name, vector in vectors.items()}, dict(vectors)

    def made(template: str) -> dict[str, _C.ControlVector]:
        """Less their own mean: what tells one number from another."""
        words = list(digits["words"])
        return _C.ControlVector.train_words_many(model, words, words, template=template, layers=_all_layers(model))

    several = [made(template) for template in digits["templates"]]
    taught = {word: [one[word] for one in several] for word in digits["words"]}
    return digit_protocol(), taught, made(digits["held_out_templates"][0])


def _all_layers(model: Model) -> list[int]:
    return list(range(model.cfg.n_layers))


__all__ = ["ORGANISMS", "Injection", "Organism", "behaviours", "grow", "load_organism"]
