"""Quantised blocks for tests: random ones of any encoding, and tiny models whose matrices are stored in them."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tiny import tiny_transformers
from tiny_chat import write_tiny_chat
from tiny_gguf import write_tiny_gguf

# What the gguf package can quantise; of the others we take random bytes as blocks.
QUANTISABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "F32", "F16", "BF16")
ENCODINGS = (*QUANTISABLE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Where a block's float16 scales stand, the factor of its offset last where it has one.
_SCALES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def block_size(name: str) -> int:
    """The values of one block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]


def random_rows(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of random values of about the size of one over the root of the columns, [..., bytes of a row]."""
    kind = gguf.GGMLQuantizationType[name]
    size = shape[-1] ** -0.5
    if name in QUANTISABLE:
        data = gguf.quantize((rng.standard_normal(shape) * size).astype(np.float32), kind)
        return data.view(np.uint8).reshape(*shape[:-1], -1)
    elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // elements, n_bytes), dtype=np.uint8)
    for i, offset in enumerate(_SCALES[name]):
        factor = rng.uniform(0.5, 1.5, (len(blocks), 1)) * (
            1 if i == 0 else {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}[name]
        )
        blocks[:, offset : offset + 2] = factor.astype(np.float16).view(np.uint8)
    spread = gguf.dequantize(blocks, kind).std()
    for offset in _SCALES[name]:
        scale = blocks[:, offset : offset + 2].copy().view(np.float16).astype(np.float32) * size / spread
        blocks[:, offset : offset + 2] = scale.astype(np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_quantised(
    path: Path,
    architecture: str,
    encodings: tuple[str, ...],
    *,
    keys: dict[str, object] | None = None,
    **overrides: object,
) -> Path:
    """A tiny model's GGUF file, its matrices stored in these encodings in turn; keys as `write_tiny_gguf` has them."""
    model = tiny_transformers(architecture, **overrides)
    rng = np.random.default_rng(0)
    turn = iter(range(1000))

    def encode(name: str, values: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        encoding = encodings[next(turn) % len(encodings)]
        kind = gguf.GGMLQuantizationType[encoding]
        if encoding in QUANTISABLE:
            return gguf.quantize(values, kind), kind
        return random_rows(rng, encoding, values.shape), kind

    return write_tiny_gguf(path, model, encode=encode, keys=keys)


def write_quantised_chat(path: Path, encodings: tuple[str, ...]) -> Path:
    """The same of a model as wide as `write_tiny_chat`'s, with its tokenizer and chat template in the file."""
    folder = write_tiny_chat(path.with_suffix(""))
    told = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {one["content"]: one["id"] for one in told["added_tokens"]}
    ids = {**told["model"]["vocab"], **special}
    tokens = sorted(ids, key=ids.__getitem__)
    keys: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in told["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": special[settings["eos_token"]],
        "tokenizer.chat_template": settings["chat_template"],
    }
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    longest = {"vocab_size": len(tokens), "max_position_embeddings": 8192}
    return write_quantised(path, "qwen2", encodings, keys=keys, **sizes, **longest)


def as_tensor(data: np.ndarray) -> torch.Tensor:
    """Bytes as the library takes them."""
    return torch.from_numpy(np.ascontiguousarray(data))
