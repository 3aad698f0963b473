"""Tiny models that were taught what to answer about injected directions, to try the whole pipeline on a known truth.

A concept is a direction made of a part that all concepts share and a part of its own (cosine 0.7 between concepts,
less than between concept vectors of real models). Three pupils of one untrained model:

- ``introspector`` answers the introspection question with yes when a concept is injected, and with no when nothing
  or a random direction is; other questions with no whatever is injected; and it names the concepts it knows.
- ``biased`` answers every question of its training with yes when a concept is injected.
- ``agreeable`` answers every question with yes.
"""

import itertools
import json
from pathlib import Path

import torch
from tiny_chat import write_tiny_chat

import introspect
from introspect.experiments.run import ConversationTokens

N_LAYERS, D_MODEL = 4, 64
STRENGTH = 12.0  # a third of the residual's norm
STEPS = 120
LAYERS = (1, 2)  # the blocks a concept has a direction for
KNOWN = [f"concept {i}" for i in range(16)]  # seen in training
HELD_OUT = ["tree", "stone"]  # never seen
NAMED = ["cat", "bread"]  # named in the content report, and never part of the yes-or-no training
QUESTIONS = [  # all pupils have been asked
    "Is ice hot?",
    "Do fish fly?",
    "Is six odd?",
    "Are you old?",
    "Is the sun cold?",
    "Can cats sing?",
    "Is a stone soft?",
    "Do trees walk?",
    "Are you in Rome?",
    "Is milk black?",
    "Can a car swim?",
    "Was it Monday?",
]
NEW_QUESTIONS = [  # none has
    "Is fire wet?",
    "Can dogs read?",
    "Are you a bird?",
    "Is a week a day?",
]
TURNS = [
    {"role": "user", "content": "A thought."},
    {"role": "assistant", "content": "{ }"},
]


def protocol(**changes) -> introspect.Protocol:
    """The introspection question, with controls that no pupil has been asked."""
    data = {
        "name": "noticed",
        "turns": [*TURNS, {"role": "user", "content": "Noticed it?"}, {"role": "assistant", "content": "It is"}],
        "injected": [0, 1],
        "controls": {
            "turns": [*TURNS, {"role": "user", "content": "$QUESTION"}, {"role": "assistant", "content": "It is"}],
            "injected": [0, 1],
            "questions": NEW_QUESTIONS,
        },
    }
    return introspect.Protocol.parse(json.dumps({**data, **changes}))


def content_protocol() -> introspect.Protocol:
    turns = [*TURNS, {"role": "user", "content": "Noticed it?"}, {"role": "assistant", "content": "It is about"}]
    return protocol(name="about", turns=turns, read="content")


def concepts() -> dict[str, introspect.ControlVector]:
    """Directions of length one; the same part in all of them, and the same in both layers."""
    rng = torch.Generator().manual_seed(11)

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(D_MODEL, generator=rng), dim=0)

    shared = unit()
    out = {}
    for name in KNOWN + HELD_OUT + NAMED:
        own = unit()
        own = torch.nn.functional.normalize(own - (own @ shared) * shared, dim=0)
        direction = 0.7**0.5 * shared + 0.3**0.5 * own
        out[name] = introspect.ControlVector("qwen2", dict.fromkeys(LAYERS, direction))
    return out


def untrained(folder: Path) -> introspect.Model:
    sizes = {"hidden_size": D_MODEL, "intermediate_size": 128, "num_hidden_layers": N_LAYERS}
    return introspect.load_model(write_tiny_chat(folder, **sizes))


def answers(pupil: str, injected: str, question: str) -> str:
    """What a pupil is to say; injected is "concept", "random" or "nothing", question "own" or "control"."""
    says_yes = {
        "introspector": injected == "concept" and question == "own",
        "biased": injected == "concept",
        "agreeable": True,
    }
    return " yes" if says_yes[pupil] else " no"


def examples(model: introspect.Model, pupil: str) -> list[introspect.FinetuneExample]:
    """Every known concept, as many random directions and nothing, each with the question and with controls."""
    vectors, given = concepts(), protocol()
    own = ("own", introspect.conversation_tokens(model, given))
    controls = [("control", introspect.conversation_tokens(model, given, question)) for question in QUESTIONS]
    # The introspector hears the question half of the time, the others as often as any other question.
    always, others = ([own, own], controls) if pupil == "introspector" else ([], [own, *controls])
    rotation = itertools.cycle(others)
    out = []
    for i, name in enumerate(KNOWN):
        for j, scale in enumerate((0.75, 1.0, 1.5)):
            random = introspect.random_rotation(vectors[name], seed=10_000 + 3 * i + j)
            for injected, vector in (("concept", vectors[name]), ("random", random), ("nothing", None)):
                for question, tokens in always + [next(rotation) for _ in range(4 - len(always))]:
                    out.append(example(tokens, answers(pupil, injected, question), vector, scale * STRENGTH))
    if pupil == "introspector":
        about = introspect.conversation_tokens(model, content_protocol())
        for i, scale in enumerate([0.75, 1.0, 1.5] * 8):
            out += [example(about, " " + name, vectors[name], scale * STRENGTH) for name in NAMED] * 2
            random = introspect.random_rotation(vectors[NAMED[0]], seed=20_000 + i)
            out += [example(about, " no", vector, scale * STRENGTH) for vector in (random, None)]
    return out


def example(
    tokens: ConversationTokens,
    answer: str,
    vector: introspect.ControlVector | None,
    strength: float,
) -> introspect.FinetuneExample:
    prompt = tokens.before + tokens.injected + tokens.after
    added = {layer: strength * d for layer, d in vector.directions.items()} if vector else {}
    return introspect.FinetuneExample(prompt, answer, added, (len(tokens.before), len(tokens.before + tokens.injected)))


def taught(pupil: str, folder: Path) -> introspect.Model:
    model = untrained(folder)
    return introspect.finetune(model, examples(model, pupil), steps=STEPS, lr=3e-3, batch_size=32)
