"""Models whose weights stay in quantised blocks: the dense model's numbers, the invariants, and what is refused."""

import subprocess
import sys

import pytest
import torch
from quantised import write_quantised

import introspect
from introspect import _C, ConfigError, analysis

# Rows of q and k out of order; biases and a fused product of several encodings; norms after layers; experts.
K_QUANTS = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32}
LEGACY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 24}
FILES = {
    "llama": ("llama", ("Q4_1", "Q8_0", "Q5_0", "Q4_0"), LEGACY),
    "qwen2": ("qwen2", ("Q4_K", "Q6_K", "Q5_K", "Q3_K", "F16", "Q2_K"), {**K_QUANTS, "tie_word_embeddings": True}),
    "gemma3": ("gemma3", ("Q8_0", "Q5_1", "MXFP4"), LEGACY),
    "mixtral": ("mixtral", ("Q4_0", "Q8_0"), LEGACY),
}
FLOOR = {"rtol": 2e-5, "atol": 2e-4}  # float32 sums in another order; logits are of order ten


@pytest.fixture(scope="module", params=FILES)
def path(request, tmp_path_factory):
    architecture, encodings, sizes = FILES[request.param]
    return write_quantised(tmp_path_factory.mktemp("tiny") / f"{request.param}.gguf", architecture, encodings, **sizes)


@pytest.fixture(scope="module")
def dense(path):
    return introspect.load_model(path, weights="dense")


@pytest.fixture(scope="module")
def stored(path):
    return introspect.load_model(path, weights="as stored")


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 101, (3, 11), generator=rng)


def test_all_that_hooks_read_is_the_dense_model_s(dense, stored, tokens):
    logits, cache = stored.run_with_cache(tokens)
    expected, wanted = dense.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected, **FLOOR)
    assert set(cache) == set(wanted)
    for name in wanted:
        if cache[name].is_floating_point():
            torch.testing.assert_close(cache[name], wanted[name], **FLOOR, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_multiply_the_same_values(path, dtype, tokens):
    dense, stored = (introspect.load_model(path, dtype=dtype, weights=how) for how in ("dense", "as stored"))
    wanted, got = dense(tokens), stored(tokens)
    assert got.dtype == wanted.dtype
    if dtype == torch.float64:
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)
    elif path.stem != "mixtral":  # whose router has near ties in bfloat16
        assert (got - wanted).abs().mean() < 0.05 * wanted.std()  # eight bits through three blocks


def test_a_cache_chunks_a_batch_and_padding_change_nothing(stored, tokens):
    whole = stored(tokens)
    for chunks in ([11], [5, 6], [1] * 11):
        cache = stored.native.make_cache(3)
        parts = [stored(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, **FLOOR)
    torch.testing.assert_close(torch.cat([stored(row[None]) for row in tokens]), whole, **FLOOR)
    padding = torch.zeros(3, 4, dtype=torch.long)
    for side in (1, -1):
        padded = torch.cat([padding, tokens][::side], 1)
        mask = torch.cat([padding.bool(), torch.ones_like(tokens, dtype=torch.bool)][::side], 1)
        got = stored(padded, attention_mask=mask)
        torch.testing.assert_close(got[:, 4:] if side == 1 else got[:, :11], whole, **FLOOR)


def test_gradients_reach_activations(dense, stored, tokens):
    gradients = []
    for model in (dense, stored):
        x = model.native.forward(tokens, stop_at_layer=1).detach().requires_grad_()
        logits = model.native.forward(x, start_at_layer=1)
        gradients.append(torch.autograd.grad(logits[:, -1, 7].sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], **FLOOR)


def test_steering_is_the_dense_model_s_and_strength_zero_changes_nothing(dense, stored, tokens, rng):
    direction = torch.randn(dense.cfg.d_model, generator=rng)
    results = []
    for model, strength in ((dense, 4.0), (stored, 4.0), (stored, 0.0)):
        hooks = model.native.make_hooks()
        hooks.add_intervention(introspect.Intervention({1: direction}, strength=strength))
        results.append(model.native.forward(tokens, hooks=hooks))
    torch.testing.assert_close(results[1], results[0], **FLOOR)
    assert torch.equal(results[2], stored(tokens))


def test_a_readout_of_some_rows_is_that_of_all(stored, tokens):
    resid = stored.native.forward(tokens, stop_at_layer=stored.cfg.n_layers)
    ids = torch.tensor([5, 99, 5, 0])
    torch.testing.assert_close(
        stored.native.readout(resid, vocab_ids=ids), stored.native.readout(resid)[..., ids], **FLOOR
    )


def test_weights_by_name_are_the_dense_model_s(dense, stored):
    names = dense.native.weight_names()
    assert stored.native.weight_names() == names
    for name in names:
        assert torch.equal(stored.native.weight(name), dense.native.weight(name)), name
    assert stored.native.n_params == dense.native.n_params
    assert stored.hash == dense.hash


def test_what_reads_weights_gives_the_dense_model_s_numbers(dense, stored, tokens):
    if not dense.cfg.num_experts:
        copies = [_C.ov_copying_scores(m.native) for m in (dense, stored)]
        torch.testing.assert_close(copies[1], copies[0], rtol=0, atol=1e-3)  # eigenvalues of the same matrices
    attributions = [
        analysis.direct_logit_attribution(m, tokens[:1], 4, wrong=9, unit="component") for m in (dense, stored)
    ]
    got, wanted = (torch.as_tensor(a.values) for a in reversed(attributions))
    torch.testing.assert_close(got, wanted, **FLOOR)


def test_blocks_take_the_file_s_memory_and_are_no_tensors(path, dense, stored):
    assert stored.native.nbytes < 1.05 * path.stat().st_size
    assert dense.native.nbytes > 2 * stored.native.nbytes
    assert dense.native.quantised_weights() == []
    assert "blocks.0.attn.W_QKV" in stored.native.quantised_weights()
    with pytest.raises(ConfigError, match="weights='dense'"):
        stored.native.named_weights()
    assert not {name for name, _ in stored.native.named_weights(skip_quantised=True)} & set(
        stored.native.quantised_weights()
    )
    with pytest.raises(ConfigError, match="quantised blocks"):
        stored.native.with_weights({"blocks.0.attn.W_QKV": torch.zeros(2, 2)})


def test_blocks_that_stay_in_the_file_give_the_same_bits(path, stored, tokens):
    left = introspect.load_model(path, weights="as stored", keep_blocks=False)
    assert torch.equal(left(tokens), stored(tokens))
    assert left.native.nbytes < stored.native.nbytes
    assert left.native.n_params == stored.native.n_params


def test_a_lora_adapter_lies_on_top(dense, stored, tokens, rng):
    if dense.cfg.num_experts:
        pytest.skip("adapters of experts have places of their own")
    results = []
    for model in (dense, stored):
        adapter = introspect.train_lora(
            model,
            [introspect.FinetuneExample(list(range(3, 9)), [20 + i]) for i in range(3)],
            steps=3, lr=1e-2, rank=2,
        )  # fmt: skip
        with model.adapted(adapter):
            results.append(model(tokens))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=5e-3)  # three steps of the optimiser


def test_training_the_blocks_is_refused(stored):
    with pytest.raises(ConfigError, match="quantised blocks"):
        introspect.finetune(stored, [introspect.FinetuneExample([3, 4], [5])], steps=1)


def test_words_and_files_that_do_not_fit_are_named(path, tmp_path):
    with pytest.raises(ConfigError, match="'dense' or 'as stored', got 'nonsense'"):
        introspect.load_model(path, weights="nonsense")
    plain = write_quantised(tmp_path / "plain.gguf", "llama", ("F32",))
    with pytest.raises(ConfigError, match="has none"):
        introspect.load_model(plain, weights="as stored")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(introspect.IoError):
        introspect.load_model(cut, weights="as stored")


READ_AFTER = """
import shutil, sys, torch, introspect
tokens = torch.tensor([[3, 4, 5, 6]])
calls = {
    "embedding": lambda model, resid: model.native.forward(tokens, stop_at_layer=0),
    "block read ahead": lambda model, resid: model.native.forward(resid, start_at_layer=0, stop_at_layer=1),
    "unembedding": lambda model, resid: model.native.readout(resid),
    "rows of it": lambda model, resid: model.native.readout(resid, vocab_ids=torch.tensor([3, 4])),
    "pass": lambda model, resid: model(tokens),
}
for name, call in calls.items():
    for change in ("cut", "rewritten"):
        path = shutil.copy(sys.argv[1], sys.argv[2])
        model = introspect.load_model(path, weights="as stored", keep_blocks=False)
        resid = model.native.forward(tokens, stop_at_layer=2)
        model(tokens)  # reads block 0 ahead
        with open(path, "r+b") as file:
            if change == "cut":
                file.truncate(4096)
            else:
                file.write(bytes(255 - byte for byte in file.read()))
        try:
            call(model, resid)
        except introspect.IoError as error:
            print(name, change, error, flush=True)
"""


def test_no_bytes_are_used_of_a_file_that_changed(tmp_path):
    """In a process of its own, which bytes that are gone from under it would end."""
    path = write_quantised(tmp_path / "tiny.gguf", "llama", ("Q4_1", "Q8_0"), **LEGACY)
    command = [sys.executable, "-c", READ_AFTER, str(path), str(tmp_path / "mine.gguf")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, (ran.returncode, ran.stdout, ran.stderr)
    assert ran.stdout.count("mine.gguf: was changed while it was in use") == len(ran.stdout.splitlines()) == 10


def test_a_file_that_is_replaced_goes_on_being_read_as_it_was(path, tmp_path, tokens):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(path.read_bytes())
    model = introspect.load_model(mine, weights="as stored", keep_blocks=False)
    expected = model(tokens)
    other = write_quantised(tmp_path / "other.gguf", "llama", ("Q8_0",), **LEGACY)
    other.replace(mine)
    assert torch.equal(model(tokens), expected)
    mine.unlink()
    assert torch.equal(model(tokens), expected)
