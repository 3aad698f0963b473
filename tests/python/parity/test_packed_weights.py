"""Weights packed by GPTQ, AWQ, bitsandbytes and MXFP4 against transformers on the same weights, unpacked.

The oracles are written from the formats' documentation, element by element: AutoGPTQ's qlinear_cuda_old.py and
AutoAWQ's packing_utils.py for the order of bits, bitsandbytes' functional.py (itself: slow/test_bitsandbytes.py). MXFP4
has transformers' convert_moe_packed_tensors. A scale of float16 times a whole number is exact in float32, so that the
models agree as models of equal weights do.
"""

import json
import struct

import pytest
import torch
from reference import exact_forward
from safetensors.torch import save_file
from tiny import tiny_transformers

import introspect

EXACT = {"rtol": 0, "atol": 1e-9}
GROUP = 8
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, the lowest first


def signed(word):
    return word - (1 << 32) if word >= 1 << 31 else word


def words_of(rows, bits):
    """Lists of whole numbers as 32-bit words, the first in the lowest bits."""
    per = 32 // bits
    return [
        [signed(sum(row[first + i] << (bits * i) for i in range(per))) for first in range(0, len(row), per)]
        for row in rows
    ]


def gptq(rng, n_out, n_in, bits, group_size, by_activation, offset):
    """W [out, in], and the tensors that it is packed in."""
    size = group_size if group_size > 0 else n_in
    groups = -(-n_in // size)
    q = torch.randint(0, 1 << bits, (n_in, n_out), generator=rng)
    zeros = torch.randint(offset, 1 << bits, (groups, n_out), generator=rng)
    scales = (torch.rand(groups, n_out, generator=rng) * 0.3 / (1 << bits) + 1e-3).half()
    order = torch.randperm(n_in, generator=rng) if by_activation else torch.arange(n_in)
    g_idx = order // size
    W = torch.empty(n_out, n_in, dtype=torch.float64)
    for i in range(n_in):
        for o in range(n_out):
            g = int(g_idx[i])
            W[o, i] = float(scales[g, o]) * (int(q[i, o]) - int(zeros[g, o]))
    packed = {
        "qweight": torch.tensor(words_of(q.t().tolist(), bits), dtype=torch.int32).t().contiguous(),
        "qzeros": torch.tensor(words_of((zeros - offset).tolist(), bits), dtype=torch.int32),
        "scales": scales,
        "g_idx": g_idx.int(),
    }
    return W, packed


def awq(rng, n_out, n_in, group_size):
    size = group_size if group_size > 0 else n_in
    q = torch.randint(0, 16, (n_in, n_out), generator=rng)
    zeros = torch.randint(0, 16, (n_in // size, n_out), generator=rng)
    scales = (torch.rand(n_in // size, n_out, generator=rng) * 0.02 + 1e-3).half()
    W = torch.empty(n_out, n_in, dtype=torch.float64)
    for i in range(n_in):
        for o in range(n_out):
            W[o, i] = (int(q[i, o]) - int(zeros[i // size, o])) * float(scales[i // size, o])

    def words(rows):
        shuffled = [[row[first + c] for first in range(0, len(row), 8) for c in AWQ_ORDER] for row in rows.tolist()]
        return torch.tensor(words_of(shuffled, 4), dtype=torch.int32)

    return W, {"qweight": words(q), "qzeros": words(zeros), "scales": scales}


NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
       0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]  # fmt: skip


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def four_bits(rng, n_out, n_in, block, nested_block=None):
    """bitsandbytes' 4 bits: blocks run over the ends of rows, and the last may be short."""
    n = n_out * n_in
    n_blocks = -(-n // block)
    codes = torch.randint(0, 16, (n,), generator=rng)
    padded = torch.cat([codes, codes.new_zeros(n % 2)])
    table, state = (
        torch.tensor(NF4),
        {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [n_out, n_in]},
    )
    parts = {"weight": (padded[::2] * 16 + padded[1::2]).to(torch.uint8).unsqueeze(1), "weight.quant_map": table}
    if nested_block is None:
        scales = parts["weight.absmax"] = torch.rand(n_blocks, generator=rng) * 0.1
    else:
        offset, of_bytes = 0.05, torch.randn(256, generator=rng)
        bytes_ = torch.randint(0, 256, (n_blocks,), generator=rng)
        per = torch.rand(-(-n_blocks // nested_block), generator=rng) * 0.02
        scales = torch.tensor([
            float32(float32(float(of_bytes[bytes_[b]]) * float(per[b // nested_block])) + float32(offset))
            for b in range(n_blocks)
        ])  # fmt: skip
        parts |= {
            "weight.absmax": bytes_.to(torch.uint8),
            "weight.nested_absmax": per,
            "weight.nested_quant_map": of_bytes,
        }
        state |= {"nested_blocksize": nested_block, "nested_dtype": "float32", "nested_offset": offset}
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    W = [float32(float(table[codes[i]]) * float(scales[i // block])) for i in range(n)]
    return torch.tensor(W, dtype=torch.float64).view(n_out, n_in), parts


def int8_rows(rng, n_out, n_in):
    q = torch.randint(-127, 128, (n_out, n_in), generator=rng)
    scb = torch.rand(n_out, generator=rng) * 0.3
    W = torch.tensor([
        [float32(float32(int(q[o, i]) * float(scb[o])) * float32(1 / 127)) for i in range(n_in)] for o in range(n_out)
    ], dtype=torch.float64)  # fmt: skip
    return W, {"weight": q.to(torch.int8), "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def pack(theirs, folder, quantization, make):
    """Write the model with its blocks' matrices packed, and give it the weights that they stand for."""
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    stored = {}
    for name, tensor in state.items():
        if ".layers." in name and name.endswith("proj.weight"):
            state[name], parts = make(*tensor.shape)
            stored |= {name.removesuffix("weight") + part: values for part, values in parts.items()}
        elif name != "lm_head.weight" or not theirs.config.tie_word_embeddings:
            stored[name] = tensor
    theirs.load_state_dict(state)
    folder.mkdir(exist_ok=True)
    save_file({name: values.contiguous() for name, values in stored.items()}, folder / "model.safetensors")
    config = json.loads(theirs.config.to_json_string(use_diff=False)) | {
        "architectures": [type(theirs).__name__],
        "quantization_config": quantization,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tiny():
    return tiny_transformers("qwen2", num_hidden_layers=2, intermediate_size=64)


GPTQ = {
    "4 bits": (4, GROUP, False, "gptq"),
    "order of activations": (4, GROUP, True, "gptq"),
    "8 bits, one group": (8, -1, False, "gptq"),
    "2 bits, second version": (2, GROUP, False, "gptq_v2"),
}


@pytest.mark.parametrize("kind", GPTQ)
def test_gptq(kind, tmp_path, rng):
    bits, group_size, by_activation, version = GPTQ[kind]
    theirs = tiny()
    offset = 1 if version == "gptq" else 0
    quantization = {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": by_activation, "sym": False,
        **({} if version == "gptq" else {"checkpoint_format": version}),
    }  # fmt: skip
    pack(theirs, tmp_path, quantization, lambda o, i: gptq(rng, o, i, bits, group_size, by_activation, offset))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, **EXACT)


@pytest.mark.parametrize("group_size", [GROUP, -1])
def test_awq(group_size, tmp_path, rng):
    theirs = tiny()
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
    pack(theirs, tmp_path, quantization, lambda o, i: awq(rng, o, i, group_size))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, **EXACT)


BITSANDBYTES = {
    "4 bits": (four_bits, 64),
    "4 bits, blocks over the ends of rows": (four_bits, 24),
    "4 bits, packed scales": (four_bits, 16, 5),
    "8 bits": (int8_rows,),
}


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_bitsandbytes(kind, tmp_path, rng):
    make, *sizes = BITSANDBYTES[kind]
    theirs = tiny()
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": make is four_bits}
    pack(theirs, tmp_path, quantization, lambda o, i: make(rng, o, i, *sizes))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, **EXACT)


Q_PROJ = "model.layers.0.self_attn.q_proj."


def no_block(stored, state):
    state["blocksize"] = 0


def cut_codes(stored, state):
    stored[Q_PROJ + "weight"] = stored[Q_PROJ + "weight"][:-1]


def no_map(stored, state):
    stored.pop(Q_PROJ + "weight.quant_map")


def short_scales(stored, state):
    stored[Q_PROJ + "weight.absmax"] = stored[Q_PROJ + "weight.absmax"][:-1]


def float_codes(stored, state):
    stored[Q_PROJ + "weight"] = stored[Q_PROJ + "weight"].float()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_block, "blocksize must be positive, got 0"),
        (cut_codes, "q_proj.weight' must be"),
        (no_map, "quant_map' of a packed matrix .* is missing"),
        (short_scales, "absmax' must be"),
        (float_codes, "stored as F32"),
    ],
)
def test_parts_of_bitsandbytes_that_do_not_fit_are_said(change, words, tmp_path, rng):
    from safetensors.torch import load_file

    pack(tiny(), tmp_path, {"quant_method": "bitsandbytes"}, lambda o, i: four_bits(rng, o, i, 64))
    stored = load_file(tmp_path / "model.safetensors")
    key = Q_PROJ + "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(stored[key].tolist()))
    change(stored, state)
    stored[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file({k: v.contiguous() for k, v in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(introspect.ConfigError, match=words):
        introspect.load_model(tmp_path)


def test_int8_in_another_order_is_refused(tmp_path, rng):
    from safetensors.torch import load_file

    pack(tiny(), tmp_path, {"quant_method": "bitsandbytes"}, lambda o, i: int8_rows(rng, o, i))
    stored = load_file(tmp_path / "model.safetensors")
    stored[Q_PROJ + "weight_format"].fill_(2)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(introspect.ConfigError, match="stands in another order"):
        introspect.load_model(tmp_path)


PACKINGS = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq, 4, GROUP, True, 1),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq, GROUP),
    "nf4": ({"quant_method": "bitsandbytes"}, four_bits, 16, 5),
    "int8": ({"quant_method": "bitsandbytes"}, int8_rows),
}


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_block_that_stays_in_the_file_is_read_with_all_of_its_parts(kind, tmp_path, rng):
    from safetensors.torch import load_file

    quantization, make, *sizes = PACKINGS[kind]
    pack(tiny(), tmp_path, quantization, lambda o, i: make(rng, o, i, *sizes))
    wanted = [0, 0]
    for name, values in load_file(tmp_path / "model.safetensors").items():
        if ".layers." in name and "quant_state" not in name:  # which is read once
            wanted[int(name.split(".")[2])] += values.nbytes
    kept, left = (introspect.load_model(tmp_path, dtype=torch.float64, keep_blocks=keep) for keep in (True, False))
    assert [left.native.bytes_read(layer) for layer in range(2)] == wanted
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    assert torch.equal(left(tokens), kept(tokens))


def test_mxfp4_experts_of_gpt_oss(tmp_path, rng):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    theirs = tiny_transformers("gpt_oss", hidden_size=64, intermediate_size=32, num_hidden_layers=2)
    state, stored = theirs.state_dict(), {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            E, n_in, n_out = tensor.shape
            blocks = torch.randint(0, 256, (E, n_out, n_in // 32, 16), generator=rng, dtype=torch.uint8)
            scales = torch.randint(120, 127, (E, n_out, n_in // 32), generator=rng, dtype=torch.uint8)
            stored |= {name + "_blocks": blocks, name + "_scales": scales}
            state[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).double()
        else:
            stored[name] = tensor
    theirs.load_state_dict(state)
    save_file({name: values.contiguous() for name, values in stored.items()}, tmp_path / "model.safetensors")
    config = json.loads(theirs.config.to_json_string(use_diff=False)) | {"architectures": ["GptOssForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    tokens = torch.randint(3, 101, (2, 12), generator=rng)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, **EXACT)


def test_mxfp4_of_gguf_is_what_its_package_reads(tmp_path, rng):
    import gguf
    import numpy as np

    values = torch.randn(5, 96, generator=rng).numpy()
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.MXFP4)
    packed[0, 0], packed[1, 0] = 0, 1  # the smallest scales, which are subnormal
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", packed, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    ours = introspect.io.open_tensors(tmp_path / "a.gguf").read("x")
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(ours.numpy(), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored, name: stored.pop(name + "qzeros"), "qzeros' of a packed matrix"),
        (lambda stored, name: stored.update({name + "scales": stored[name + "scales"][:, :8]}), "scales' must be"),
        (lambda stored, name: stored.update({name + "qzeros": stored[name + "qzeros"].float()}), "stored as F32"),
        (lambda stored, name: stored[name + "g_idx"].fill_(99), "must hold groups from 0 to 5"),
    ],
)
def test_parts_that_do_not_fit_are_said(change, words, tmp_path, rng):
    from safetensors.torch import load_file

    pack(tiny(), tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
         lambda o, i: gptq(rng, o, i, 4, GROUP, True, 1))  # fmt: skip
    stored = load_file(tmp_path / "model.safetensors")
    change(stored, "model.layers.0.self_attn.q_proj.")
    save_file({k: v.contiguous() for k, v in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(introspect.ConfigError, match=words):
        introspect.load_model(tmp_path)


def test_the_packing_is_part_of_a_models_identity(tmp_path, rng):
    """Zeros of the two versions of GPTQ differ by one, which no tensor says."""
    theirs, quantization = tiny(), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    pack(theirs, tmp_path, quantization, lambda o, i: gptq(rng, o, i, 4, GROUP, False, 1))
    first = introspect.load_model(tmp_path).native.hash
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": quantization | {"checkpoint_format": "gptq_v2"}}))
    assert introspect.load_model(tmp_path).native.hash != first
