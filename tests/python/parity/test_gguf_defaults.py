"""What llama.cpp takes for metadata that GGUF files leave out, spell in an older way or hold as zero.

Source: ggml-org/llama.cpp, src/llama-model.cpp, load_hparams, and its pull request 8931 for Phi-3.
"""

import pytest
import torch
from reference import exact_forward
from tiny import tiny_transformers
from tiny_gguf import write_tiny_gguf

import introspect

EXACT = {"rtol": 0, "atol": 1e-5}  # GGUF keeps eps as float32


def load(path):
    return introspect.load_model(path, dtype=torch.float64)


def without(path, key):
    """The file with a key that nobody knows in this one's place."""
    content = path.read_bytes()
    assert content.count(key.encode()) == 1
    path.write_bytes(content.replace(key.encode(), key.encode()[:-1] + b"?"))
    return path


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__factor": 4}, 4.0),
        ({"rope__scale_linear": 4.0}, 4.0),
        ({"rope__scaling__type": "linear", "rope__scale_linear": 4.0}, 4.0),
        ({"rope__scaling__factor": 2.0, "rope__scale_linear": 4.0}, 2.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scaling__type": "linear"}, 1.0),
        ({"rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scaling__factor": 0.0, "rope__scale_linear": 4.0}, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1.0),
        ({"rope__scaling__attn_factor": 1.0, "rope__scaling__factor": 4.0}, 4.0),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rope_scaling_has_the_factor_that_llama_cpp_takes(family, keys, factor, tmp_path, rng):
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    path = write_tiny_gguf(tmp_path / "a.gguf", tiny_transformers(family, rope_parameters=rope).float(), **keys)
    scaled = {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}
    theirs = tiny_transformers(family, rope_parameters=scaled).float().double()
    tokens = torch.randint(3, 101, (2, 24), generator=rng)
    torch.testing.assert_close(load(path)(tokens), exact_forward(theirs, tokens).logits, **EXACT)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"rope__scaling__type": "other", "rope__scaling__factor": 4.0}, "rope.scaling.type"),
        ({"rope__scaling__factor": -1.0}, "factor"),
        ({"rope__scaling__factor": 2.0, "rope__scaling__attn_factor": 1.2}, "attn_factor"),
        ({"attention__causal": False}, "attention.causal"),
        ({"attention__value_length": 12}, "value_length"),
        ({"rope__dimension_count": 6}, "dimension_count"),
    ],
    ids=range(6),
)
def test_what_llama_cpp_would_run_otherwise_is_refused(keys, word, tmp_path):
    theirs = tiny_transformers("llama linear rope", head_dim=None, rope_parameters=None)
    keys = {"rope__dimension_count": 8, **keys} if "rope__dimension_count" not in keys else keys
    import tiny_gguf

    rope = tiny_gguf.add_rope
    tiny_gguf.add_rope = lambda writer, config: None
    try:
        path = write_tiny_gguf(tmp_path / "a.gguf", theirs, **keys)
    finally:
        tiny_gguf.add_rope = rope
    with pytest.raises(introspect.ConfigError, match=word):
        introspect.load_model(path)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_file_without_a_base_has_ten_thousand(family, tmp_path, rng):
    theirs = tiny_transformers(family, query_pre_attn_scalar=10).float()
    path = write_tiny_gguf(tmp_path / "a.gguf", theirs)
    stated = load(path).native.hash
    assert load(without(path, "rope.freq_base")).native.hash == stated  # of a model whose base is 10000


def test_a_file_without_a_base_of_gemma_3_has_it_too(tmp_path):
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0}}  # fmt: skip
    path = write_tiny_gguf(tmp_path / "a.gguf", tiny_transformers("gemma3", rope_parameters=rope).float())
    stated = load(path).native.hash
    content = path.read_bytes()
    path.write_bytes(content.replace(b"rope.freq_base\x06", b"rope.freq_bas?\x06"))
    assert path.read_bytes() != content
    assert load(path).native.hash == stated


@pytest.mark.parametrize(
    ("family", "sizes", "window"),
    [
        ("phi3", {"num_hidden_layers": 32, "max_position_embeddings": 4096}, 2047),
        ("phi3", {"num_hidden_layers": 40, "max_position_embeddings": 4096}, 2047),
        ("phi3", {"num_hidden_layers": 32, "max_position_embeddings": 131072, "num_attention_heads": 32,
                  "num_key_value_heads": 32, "hidden_size": 64, "partial_rotary_factor": 1.0}, 262144),
        ("phi3", {"num_hidden_layers": 40, "max_position_embeddings": 131072}, 131072),
        ("phi3", {"num_hidden_layers": 4, "max_position_embeddings": 4096}, 0),
        ("gemma2", {}, 4096),
        ("gemma3", {}, 0),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_file_without_a_window_has_the_one_that_llama_cpp_takes(family, sizes, window, tmp_path):
    """Models are equal, by their hash, to those of files that state it."""

    def written(**keys):
        theirs = tiny_transformers(family, **{**sizes, "sliding_window": None if family == "phi3" else 7}).float()
        theirs.config.sliding_window = None
        return load(write_tiny_gguf(tmp_path / "a.gguf", theirs, **keys)).native.hash

    assert written() == written(attention__sliding_window=window)
    assert written() != written(attention__sliding_window=3)


def test_sizes_by_layer_are_read_where_they_are_equal(tmp_path, rng):
    theirs = tiny_transformers("llama").float()
    path = write_tiny_gguf(tmp_path / "a.gguf", theirs)
    stated = load(path).native.hash
    import gguf

    class Writer(gguf.GGUFWriter):
        def add_head_count_kv(self, count):
            self.add_array(f"{self.arch}.attention.head_count_kv", [count] * 3)

    original, gguf.GGUFWriter = gguf.GGUFWriter, Writer
    try:
        write_tiny_gguf(path, theirs)
    finally:
        gguf.GGUFWriter = original
    assert load(path).native.hash == stated
