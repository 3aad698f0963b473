"""Model files and configs that cannot be true: refused at once, before memory is taken for what they claim."""

import json
import resource
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, write_tiny, write_tiny_transformers

import introspect
from introspect import _C

SMALL = 512 << 20  # bytes that a refusal may take beside what the process has


@pytest.fixture
def little_memory():
    """No more than 512 MB beyond what is mapped now."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SMALL, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(path, match=None):
    start = time.monotonic()
    with pytest.raises((introspect.ConfigError, introspect.IoError, introspect.ShapeError), match=match):
        introspect.load_model(path)
    assert time.monotonic() - start < 5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def with_config(tiny, folder, architecture="Qwen2ForCausalLM", **changes):
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    config = {**CONFIG, "architectures": [architecture], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


HUGE = [2**30, 2**31, 2**62, 2**63, 2**64, -1, 0]
COUNTS = ["num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
          "intermediate_size"]  # fmt: skip


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("field", COUNTS)
def test_a_made_up_size_of_a_config_is_refused(tiny, tmp_path, little_memory, field, value):
    refused(with_config(tiny, tmp_path, **{field: value}))


@pytest.mark.parametrize("value", [2**24, 2**30, 2**62])
def test_a_made_up_number_of_layers_with_windows_is_refused(tiny, tmp_path, little_memory, value):
    refused(
        with_config(tiny, tmp_path, "MistralForCausalLM", num_hidden_layers=value, sliding_window=4), "num_hidden_l"
    )


def test_all_sizes_together_cannot_overflow(tiny, tmp_path, little_memory):
    largest = 2**31 - 1
    refused(with_config(tiny, tmp_path, **{field: largest for field in COUNTS if field != "num_hidden_layers"}))


def test_positions_of_gpt2_are_compared_before_they_are_read(tmp_path, little_memory):
    write_tiny_transformers(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text()) | {"n_positions": 2**30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "wpe")


def test_a_tensor_that_is_missing_from_the_last_layer_is_told_first(tiny, tmp_path):
    state = load_file(tiny / "model.safetensors")
    del state["model.layers.2.mlp.down_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    calls = []
    with pytest.raises(introspect.ConfigError, match=r"layers\.2\.mlp\.down_proj"):
        introspect.load_model(tmp_path, progress=lambda *step: calls.append(step))
    assert not calls  # no layer was read


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_hidden_layers": 2.9}, "num_hidden_layers"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"head_dim": 8.9}, "head_dim"),
        ({"vocab_size": None}, "vocab_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": 64.5}, "max_position_embeddings"),
        ({"rms_norm_eps": 1e308}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": 1e-300}, "rope_theta"),
        ({"rope_theta": 1e300}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -10000.0}, "rope_theta"),
        ({"rope_theta": [1e4]}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, "factor"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": 7}}, "type"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                           "original_max_position_embeddings": 32}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0, "high_freq_factor": 1.0,
                           "original_max_position_embeddings": 32}}, "low_freq_factor"),
        ({"use_sliding_window": 1}, "use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 2.5, "max_window_layers": 0}, "sliding_window"),
        ({"use_sliding_window": True, "sliding_window": -3, "max_window_layers": 0}, "sliding_window"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"architectures": "Qwen2ForCausalLM"}, "architectures"),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "architectures"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
    ],
    ids=range(33),
)  # fmt: skip
def test_a_field_that_makes_no_sense_is_named(tiny, tmp_path, changes, word):
    refused(with_config(tiny, tmp_path, **changes), word)


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def handmade(path, fields, tensors):
    """A GGUF file byte by byte: fields as (key, type, packed value), tensors as (name, dimensions)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in fields)
    body += b"".join(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, 0) for name, dims in tensors)
    path.write_bytes((head + body).ljust(-(-len(head + body) // 32) * 32, b"\0") + bytes(64))
    return path


def u32(key, value):
    return (key, gguf.GGUFValueType.UINT32, struct.pack("<I", value))


def u64(key, value):
    return (key, gguf.GGUFValueType.UINT64, struct.pack("<Q", value))


def f32(key, value):
    return (key, gguf.GGUFValueType.FLOAT32, struct.pack("<f", value))


def string(key, value):
    return (key, gguf.GGUFValueType.STRING, text(value))


def fields_of(architecture, **changes):
    fields = {
        "block_count": u32, "embedding_length": u32, "attention.head_count": u32, "feed_forward_length": u32,
        "context_length": u32,
    }  # fmt: skip
    values = {"block_count": 2, "embedding_length": 8, "attention.head_count": 2, "feed_forward_length": 8,
              "context_length": 16}  # fmt: skip
    out = [string("general.architecture", architecture)]
    out += [make(f"{architecture}.{key}", values[key]) for key, make in fields.items() if key not in changes]
    out.append(f32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5))
    return [*out, *[make(f"{architecture}.{key}", value) for key, (make, value) in changes.items()]]


@pytest.mark.parametrize("dims", [(), (4,), (2, 2, 2), (1, 1, 1, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_an_embedding_of_other_dimensions_is_refused(tmp_path, architecture, dims):
    path = handmade(tmp_path / "m.gguf", fields_of(architecture), [("token_embd.weight", dims)])
    refused(path)


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_q.weight", "rope_freqs.weight"])
@pytest.mark.parametrize("dims", [(), (2**40,), (2**20, 2**20, 1), (0,)])
def test_any_tensor_of_other_dimensions_is_refused(tmp_path, little_memory, name, dims):
    fields = fields_of("llama")
    with pytest.raises(introspect.Error):
        introspect.load_model(handmade(tmp_path / "m.gguf", fields, [("token_embd.weight", (8, 0)), (name, dims)]))


@pytest.mark.parametrize("count", [2**24, 2**31 - 1])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gemma2", "phi3"])
def test_a_made_up_number_of_blocks_is_refused(tmp_path, little_memory, architecture, count):
    fields = fields_of(architecture, **{"block_count": (u32, count), "attention.sliding_window": (u32, 4)})
    refused(handmade(tmp_path / "m.gguf", fields, [("token_embd.weight", (8, 2))]), "block_count")


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "feed_forward_length",
                                 "context_length", "attention.key_length", "rope.dimension_count"])  # fmt: skip
@pytest.mark.parametrize("value", [0, 2**40, 2**63 + 1])
def test_a_made_up_size_of_a_gguf_is_refused(tmp_path, little_memory, key, value):
    fields = fields_of("llama", **{key: (u64, value)})
    refused(handmade(tmp_path / "m.gguf", fields, [("token_embd.weight", (8, 2))]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope.freq_base", float("nan")), ("rope.freq_base", 0.0), ("rope.scaling.factor", float("inf")),
     ("rope.scaling.factor", -2.0), ("attention.layer_norm_rms_epsilon", float("nan"))],
)  # fmt: skip
def test_a_number_of_a_gguf_that_makes_no_sense_is_refused(tmp_path, key, value):
    fields = [field for field in fields_of("llama") if not field[0].endswith(key)] + [f32(f"llama.{key}", value)]
    refused(handmade(tmp_path / "m.gguf", fields, [("token_embd.weight", (8, 2))]))


def test_what_is_no_model_is_said(tmp_path):
    fields = [*fields_of("llama"), string("general.type", "adapter")]
    refused(handmade(tmp_path / "m.gguf", fields, [("token_embd.weight", (8, 2))]), "LoRA adapter; merge it")
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_tensor("direction.1", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "v.gguf", "'controlvector', a control vector and no model")


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("Qwen2MoeForCausalLM", "a mixture of experts"),
        ("OlmoeForCausalLM", "a mixture of experts"),
        ("DeepseekV3ForCausalLM", "a mixture of experts"),
        ("Llama4ForConditionalGeneration", "a mixture of experts"),
        ("OlmoForCausalLM", "a decoder of another family"), ("OPTForCausalLM", "a decoder of another family"),
        ("GPTNeoForCausalLM", "a decoder of another family"), ("GemmaForCausalLM", "a decoder of another family"),
        ("PhiForCausalLM", "a decoder of another family"), ("FalconForCausalLM", "a decoder of another family"),
        ("BertForMaskedLM", "an encoder"), ("RobertaForMaskedLM", "an encoder"), ("DistilBertModel", "an encoder"),
        ("ModernBertForMaskedLM", "an encoder"), ("T5ForConditionalGeneration", "an encoder and a decoder"),
        ("BartForConditionalGeneration", "an encoder and a decoder"), ("MambaForCausalLM", "a recurrent"),
        ("FalconMambaForCausalLM", "a recurrent"), ("Qwen2VLForConditionalGeneration", "a model of images"),
        ("LlamaForSequenceClassification", "ranks or labels"),
    ],
)  # fmt: skip
def test_another_architecture_is_said_to_be_what_it_is(tiny, tmp_path, architecture, what):
    refused(with_config(tiny, tmp_path, architecture), what)


@pytest.mark.parametrize("name", ["qwen2moe", "olmo", "bert", "t5", "mamba", "phi2", "nomic-bert-moe"])
def test_another_architecture_of_a_gguf_is_said_to_be_what_it_is(tmp_path, name):
    what = {"qwen2moe": "a mixture of experts", "olmo": "a decoder of another family", "bert": "an encoder",
            "t5": "an encoder and a decoder", "mamba": "a recurrent", "phi2": "a decoder of another family",
            "nomic-bert-moe": "a mixture of experts"}[name]  # fmt: skip
    refused(handmade(tmp_path / "m.gguf", [string("general.architecture", name)], []), what)


def test_a_peft_adapter_is_said_to_be_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}')
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, r"a PEFT adapter of 'Qwen/Qwen2\.5-0\.5B' and no model; merge it")


# ---- caches ---------------------------------------------------------------------------------------------------------


def test_a_cache_file_that_claims_more_than_it_holds_is_refused(tiny, tmp_path, little_memory):
    model = introspect.load_model(tiny)
    cache = model.native.make_cache(1)
    model.native.forward(torch.tensor([[3, 4, 5]]), cache=cache)
    cache.save(tmp_path / "c.safetensors")
    tensors = load_file(tmp_path / "c.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        metadata = file.metadata()
    for key in ("n_layers", "batch", "n_key_value_heads", "d_head", "length"):
        for value in (2**31, 2**62, 2**63, -1):
            save_file(tensors, tmp_path / "bad.safetensors", {**metadata, key: str(value)})
            with pytest.raises(introspect.IoError):
                introspect.KVCache.load(tmp_path / "bad.safetensors")
    empty = {name: torch.ones(2**40, 2, 0, 8, device="meta") for name in tensors}
    header = {name: {"dtype": "F32", "shape": list(t.shape), "data_offsets": [0, 0]} for name, t in empty.items()}
    header["__metadata__"] = {**metadata, "batch": str(2**40), "length": "0"}
    data = json.dumps(header).encode()
    (tmp_path / "empty.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)
    with pytest.raises(introspect.IoError, match="must be at most"):
        introspect.KVCache.load(tmp_path / "empty.safetensors")


def test_a_state_dict_of_what_has_no_elements_is_refused(tiny):
    config = (tiny / "config.json").read_text()
    state = load_file(tiny / "model.safetensors")
    name = "model.norm.weight"
    for bad in (
        state[name].to_sparse(),
        state[name].to("meta"),
        torch.quantize_per_tensor(torch.ones(32), 1, 0, torch.qint8),
    ):
        with pytest.raises(introspect.ShapeError, match=name.replace(".", r"\.")):
            _C.Model.from_state_dict(config, {**state, name: bad})
