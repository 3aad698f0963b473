"""Experiments without a plan: for every reading one pass over the whole text, with hooks at the injected positions."""

import json
from dataclasses import dataclass

import torch

import introspect


@dataclass
class Looped:
    """A naive run's last position: residuals after every block, logits, and attention [layer, head, key]."""

    resid: torch.Tensor
    logits: torch.Tensor
    patterns: torch.Tensor


def chat_ids(model, turns, n=None) -> list[int]:
    """Tokens of the first n messages, the last of all being unfinished where it is the assistant's."""
    n = len(turns) if n is None else n
    if n == 0:
        return []
    is_open = n == len(turns) and turns[-1]["role"] == "assistant"
    text = model.apply_chat_template(turns[:n], continue_final_message=is_open)
    return model.tokenizer.encode(text, add_special_tokens=False)


def message_positions(model, turns, indices) -> list[int]:
    """Positions of whole messages, with what the template writes around them."""
    return [p for i in indices for p in range(len(chat_ids(model, turns, i)), len(chat_ids(model, turns, i + 1)))]


@torch.no_grad()
def looped(model, ids, positions=(), added=None, replaced=None) -> Looped:
    """A pass over ids [T] with added[layer] added to the outputs of blocks, or replaced[layer] [P, D] put there."""
    added, replaced = added or {}, replaced or {}
    index = list(positions)

    def change(layer):
        def hook(x, hook):
            x = x.clone()
            if layer in added:
                x[:, index] += added[layer].to(x)
            if layer in replaced:
                x[:, index] = replaced[layer].to(x)
            return x

        return hook

    n = model.cfg.n_layers
    hooks = [(f"blocks.{layer}.hook_resid_post", change(layer)) for layer in {*added, *replaced}]
    names = [f"blocks.{i}.{point}" for i in range(n) for point in ("hook_resid_post", "attn.hook_pattern")]
    with model.hooks(fwd_hooks=hooks):
        logits, cache = model.run_with_cache(torch.tensor([ids]), names_filter=names)
    return Looped(
        torch.stack([cache[f"blocks.{layer}.hook_resid_post"][0, -1] for layer in range(n)]),
        logits[0, -1],
        torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1] for layer in range(n)]),
    )


@torch.no_grad()
def changed(model, turns, injected=(), changes=None, more=()) -> torch.Tensor:
    """Logits [T, vocabulary] of a pass over a conversation with changes[layer](x [P, D]) in its injected messages.

    ``more`` are tokens after the conversation, which are changed too.
    """
    ids = [*chat_ids(model, turns), *more]
    index = [*message_positions(model, turns, injected), *range(len(ids) - len(more), len(ids))]

    def hook_of(change):
        def hook(x, hook):
            x = x.clone()
            x[:, index] = change(x[0, index])
            return x

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", hook_of(change)) for layer, change in (changes or {}).items()]
    with model.hooks(fwd_hooks=hooks):
        return model(torch.tensor([ids]))[0]


def adding(vector, strength) -> dict:
    """The changes of ``changed`` that add a control vector."""

    def of(direction):
        return lambda x: x + (strength * direction).to(x)  # the product in float32, as the library has it

    return {layer: of(direction) for layer, direction in vector.directions.items()}


def token(model, text) -> int:
    (one,) = model.tokenizer.encode(text, add_special_tokens=False)
    return one


def log_odds(model, logits: torch.Tensor) -> float:
    return float(logits[token(model, " yes")] - logits[token(model, " no")])


TURNS = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "A thought."},
    {"role": "assistant", "content": "{ }"},
    {"role": "user", "content": "Noticed it?"},
    {"role": "assistant", "content": "The answer is"},
]


def protocol(**fields) -> introspect.Protocol:
    """A small protocol; a field that is None is left out."""
    data = {"name": "mine", "turns": TURNS, "injected": [1, 2], **fields}
    return introspect.Protocol.parse(json.dumps({k: v for k, v in data.items() if v is not None}))


CONTROLS = {
    "turns": [*TURNS[:3], {"role": "user", "content": "$QUESTION"}, TURNS[4]],
    "injected": [1, 2],
    "questions": ["Is ice hot?", "Are you a bird?", "Is it day?"],
}


def looped_readings(model, vectors, strength) -> tuple[Looped, dict[str, Looped]]:
    """(base, {concept: injected}) of the protocol's own question, every vector injected by itself."""
    ids, positions = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    return looped(model, ids), {
        name: looped(model, ids, positions, {layer: strength * v for layer, v in vector.directions.items()})
        for name, vector in vectors.items()
    }
