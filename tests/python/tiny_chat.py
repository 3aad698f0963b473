"""A tiny random model that can chat: a byte-level vocabulary with a few words, and the ChatML format."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tiny import write_tiny

import introspect

WORDS = ["Ġyes", "Ġno", "Ġcat", "cat", "Ġbread"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_tiny_chat(folder: Path, seed: int = 0, **overrides) -> Path:
    """Write the model and its tokenizer; every other word falls into bytes."""
    vocab = {token: i for i, token in enumerate(byte_alphabet())}
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append([word[: end - 1], word[end - 1]])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [
        {
            "id": len(vocab) + i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False},
    }
    n_vocab = len(vocab) + len(special)
    write_tiny(folder, seed=seed, **{"vocab_size": n_vocab, "max_position_embeddings": 8192, **overrides})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML})
    )
    return folder


def random_vectors(layers: Iterable[int] = (1, 2)) -> dict[str, introspect.ControlVector]:
    """Two concepts of the tiny model, with nothing in common."""
    rng = torch.Generator().manual_seed(5)
    layers = list(layers)
    return {
        name: introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in layers})
        for name in ("cat", "bread")
    }


def overflowing(model: introspect.Model, block: int) -> introspect.Model:
    """The model with weights in one block that are too large for what it adds to be a finite float16."""
    weights = dict(model.native.named_weights())
    name = f"blocks.{block}.attn.W_O"
    return introspect.Model(model.native.with_weights({name: torch.full_like(weights[name], 6e4)}))
