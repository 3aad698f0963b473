"""Weights that bitsandbytes packs, against what it unpacks: `pip install bitsandbytes` first, else this is skipped."""

import json

import pytest
import torch
from reference import exact_forward
from safetensors.torch import save_file
from tiny import tiny_transformers

import introspect

functional = pytest.importorskip("bitsandbytes.functional")


def four_bits(W, **options):
    q, state = functional.quantize_4bit(W.float(), **options)
    parts = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    return functional.dequantize_4bit(q, state), {"weight": q, **parts}


def int8(W):
    q, scales, _ = functional.int8_vectorwise_quant(W.half())
    return functional.int8_vectorwise_dequant(q, scales), {"weight": q, "SCB": scales}


KINDS = {
    "nf4": lambda W: four_bits(W, quant_type="nf4"),
    "nf4, packed scales": lambda W: four_bits(W, quant_type="nf4", compress_statistics=True),
    "fp4, packed scales": lambda W: four_bits(W, quant_type="fp4", compress_statistics=True),
    "int8": int8,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_what_bitsandbytes_unpacks(kind, tmp_path, rng):
    # bitsandbytes 0.50's CPU path does not give back matrices of 48 inputs, no multiple of its block of 64.
    theirs = tiny_transformers("qwen2", num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    state, stored = theirs.state_dict(), {}
    for name, tensor in state.items():
        if ".layers." in name and name.endswith("proj.weight"):
            unpacked, parts = KINDS[kind](tensor)
            state[name] = unpacked.to(tensor.dtype)
            stored |= {name.removesuffix("weight") + part: values.contiguous() for part, values in parts.items()}
        elif name != "lm_head.weight" or not theirs.config.tie_word_embeddings:
            stored[name] = tensor
    theirs.load_state_dict(state)
    save_file(stored, tmp_path / "model.safetensors")
    config = json.loads(theirs.config.to_json_string(use_diff=False)) | {
        "architectures": [type(theirs).__name__],
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, rtol=0, atol=1e-9)
