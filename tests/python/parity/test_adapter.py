"""LoRA adapters as peft trains and saves them: the same logits as peft's, on and off, in graphs, and faults by name."""

import json

import peft
import pytest
import torch
from adapters import adapter_of, random_peft
from reference import exact_softmax, transformers_model
from tiny import write_tiny_transformers

import introspect

FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3"]
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64 on both sides


def logits_of(theirs, tokens):
    with torch.no_grad(), exact_softmax():
        return theirs(tokens).logits.double()


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 101, (2, 12), generator=rng)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_peft_and_off_again_those_of_the_base(name, tmp_path, tokens):
    theirs = random_peft(name, tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    before = model(tokens)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    with model.adapted(adapter):
        ours, hash_inside = model(tokens), model.hash
    assert hash_inside == model.with_adapter(adapter).hash
    torch.testing.assert_close(ours, logits_of(theirs, tokens), **FLOOR)
    assert (ours - before).abs().max() > 0.1
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "gpt_neox", "phi3"])
def test_float32_is_within_a_ten_thousandth_of_peft(name, tmp_path, tokens):
    theirs = random_peft(name, tmp_path, dtype=torch.float32)
    model = introspect.load_model(tmp_path / "base").with_adapter(introspect.Adapter.load(tmp_path / "adapter"))
    torch.testing.assert_close(model(tokens).double(), logits_of(theirs, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_bfloat16_is_as_near_to_the_exact_logits_as_peft(name, tmp_path, tokens):
    exact = random_peft(name, tmp_path / "exact", dtype=torch.float64)
    theirs = random_peft(name, tmp_path / "half", dtype=torch.bfloat16)
    model = introspect.load_model(tmp_path / "exact" / "base", dtype=torch.bfloat16)
    model = model.with_adapter(introspect.Adapter.load(tmp_path / "half" / "adapter"))
    expected = logits_of(exact, tokens)
    their_error = (logits_of(theirs, tokens) - expected).abs().max()
    assert (model(tokens).double() - expected).abs().max() <= 1.5 * their_error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
        ("llama", {"target_modules": r".*\.(self_attn\.o_proj|mlp\.(gate|down)_proj)"}),
        ("llama", {"target_modules": ["up_proj", "k_proj"], "layers_to_transform": [0, 2]}),
        ("qwen2", {"target_modules": "all-linear", "exclude_modules": ["o_proj", "gate_proj"]}),
        ("qwen2", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}, "alpha_pattern": {"down_proj": 20}}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "layers_to_transform": 1}),
        ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "rank_pattern": {"^transformer.h.1.attn.c_attn": 5}}),
    ],
)
def test_modules_ranks_and_strengths_are_read_as_peft_reads_them(name, options, tmp_path, tokens):
    theirs = random_peft(name, tmp_path, **options)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    trained = {n.split(".lora_A")[0] for n, _ in theirs.named_parameters() if ".lora_A" in n}
    assert set(adapter.modules) == {n.removeprefix("base_model.model.") for n in trained}
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64).with_adapter(adapter)
    torch.testing.assert_close(model(tokens), logits_of(theirs, tokens), **FLOOR)


def test_a_scale_multiplies_the_addition_and_adapters_add_up(tmp_path, tokens):
    theirs = random_peft("llama", tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    twice = model.with_adapter(adapter, scale=2.0)
    with model.adapted(adapter), model.adapted(adapter):
        stacked = model(tokens)
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling = {name: 2 * scaling for name, scaling in module.scaling.items()}
    torch.testing.assert_close(twice(tokens), logits_of(theirs, tokens), **FLOOR)
    torch.testing.assert_close(stacked, logits_of(theirs, tokens), **FLOOR)
    torch.testing.assert_close(model.with_adapter(adapter, scale=0.0)(tokens), model(tokens), rtol=0, atol=0)
    hashes = [model.hash, model.with_adapter(adapter).hash, twice.hash, twice.with_adapter(adapter).hash]
    assert len(set(hashes)) == 4
    assert model.with_adapter(adapter, scale=0.0).hash == model.hash


def test_generation_takes_pefts_greedy_tokens(tmp_path, tokens):
    theirs = random_peft("qwen2", tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    with model.adapted(introspect.Adapter.load(tmp_path / "adapter")):
        ours = model.native.generate(tokens[:, :4].tolist(), max_new_tokens=10, stop_at_eos=False)
    ids = tokens[:, :4]
    for _ in range(10):
        ids = torch.cat([ids, logits_of(theirs, ids)[:, -1].argmax(-1, keepdim=True)], 1)
    assert ours == ids[:, 4:].tolist()
    assert ours != model.native.generate(tokens[:, :4].tolist(), max_new_tokens=10, stop_at_eos=False)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_gradients_of_the_matrices_are_pefts(name, tmp_path, tokens):
    """Queries, keys and values of Llama are three modules, those of GPT-NeoX one whose rows stand head by head."""
    theirs = random_peft(name, tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    model = model.with_adapter(introspect.Adapter.load(tmp_path / "adapter"))
    ours = dict(model.native.named_weights())
    wanted = {"llama": ["attn.A_QKV.2", "attn.A_O.0", "mlp.A_in.1", "mlp.B_in.1", "mlp.B_out.0"]}
    wanted = wanted.get(name, ["attn.A_QKV.0", "attn.B_O.0", "mlp.A_in.0"])
    for part in wanted:
        ours[f"blocks.1.{part}"].requires_grad_()
    model(tokens).square().mean().backward()
    with exact_softmax():
        theirs(tokens).logits.square().mean().backward()
    module = {
        "attn.A_QKV.0": "attention.query_key_value",
        "attn.A_QKV.2": "self_attn.v_proj",
        "attn.A_O.0": "self_attn.o_proj",
        "attn.B_O.0": "attention.dense",
        "mlp.A_in.0": "mlp.dense_h_to_4h",
        "mlp.A_in.1": "mlp.up_proj",
        "mlp.B_in.1": "mlp.up_proj",
        "mlp.B_out.0": "mlp.down_proj",
    }
    parameters = dict(theirs.named_parameters())
    for part in wanted:
        matrix = "lora_A" if ".A_" in part else "lora_B"
        (expected,) = [p.grad for n, p in parameters.items() if f"layers.1.{module[part]}.{matrix}" in n]
        torch.testing.assert_close(ours[f"blocks.1.{part}"].grad, expected, rtol=0, atol=1e-12)


def test_two_adapters_and_the_base_stand_in_one_graph(tmp_path, tokens):
    one, other = random_peft("llama", tmp_path / "1", seed=1), random_peft("llama", tmp_path / "2", seed=2)
    model = introspect.load_model(tmp_path / "1" / "base", dtype=torch.float64)
    adapters = [introspect.Adapter.load(tmp_path / number / "adapter") for number in "12"]
    ids = tokens[0].tolist()
    graph = introspect.Graph()
    reads = []
    for adapter in (None, *adapters):
        before = graph.segment(model, ids[:5], adapter=adapter)
        reads.append(graph.read(graph.segment(model, ids[5:], before, adapter=adapter)))
    base = graph.segment(model, ids[:5])
    mixed = graph.read(graph.segment(model, ids[5:], base, adapter=adapters[0]))
    assert len(graph) == 7  # the base's first segment stands there once
    with model.adapted(adapters[1]):
        inside = introspect.Graph()
        hash_inside = inside.hash(inside.segment(model, ids[:5]))
    assert hash_inside == graph.hash(graph.segment(model, ids[:5], adapter=adapters[1]))
    resid = graph.run()
    last = [model.native.readout(resid[read][0, -1]) for read in reads]
    with one.disable_adapter():
        expected = [logits_of(one, tokens[:1])[0, -1]]
    expected += [logits_of(theirs, tokens[:1])[0, -1] for theirs in (one, other)]
    torch.testing.assert_close(torch.stack(last), torch.stack(expected), **FLOOR)
    # The adapter sees the base's keys and values: peft with a cache that was filled while it was off.
    with torch.no_grad(), exact_softmax():
        with one.disable_adapter():
            cache = one(tokens[:1, :5], use_cache=True).past_key_values
        expected = one(tokens[:1, 5:], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(model.native.readout(resid[mixed][0, -1]), expected, **FLOOR)


def test_hooks_on_single_heads_see_the_adapted_products(tmp_path, tokens):
    """A hook that copies an activation takes the paths on which heads have products of their own."""
    theirs = random_peft("llama", tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    with model.adapted(introspect.Adapter.load(tmp_path / "adapter")):
        expected = logits_of(theirs, tokens)
        for point in ("attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in"):
            hooked = model.run_with_hooks(tokens, [(f"blocks.1.{point}", lambda x, hook: x.clone())])
            torch.testing.assert_close(hooked, expected, **FLOOR)


def test_weights_under_an_adapter_are_merged_ones(tmp_path, tokens):
    """Reading a weight, processing, and peft's merge_and_unload agree."""
    theirs = random_peft("llama", tmp_path)
    model = introspect.load_model(tmp_path / "base", dtype=torch.float64)
    n_params = model.native.n_params
    adapted = model.with_adapter(introspect.Adapter.load(tmp_path / "adapter"))
    assert adapted.native.n_params == n_params + sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    expected = logits_of(theirs, tokens)
    processed = introspect.Model(adapted.native.processed(fold_ln=True, fold_value_biases=True))
    torch.testing.assert_close(processed(tokens), expected, **FLOOR)
    merged = theirs.merge_and_unload().model.layers[1]
    ours = adapted.native.weight("blocks.1.mlp.W_out")
    torch.testing.assert_close(ours, merged.mlp.down_proj.weight.detach().t(), **FLOOR)
    W_V = adapted.native.weight("blocks.1.attn._W_V").transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(W_V, merged.self_attn.v_proj.weight.detach(), **FLOOR)


def test_blocks_that_stay_in_their_files_are_adapted_as_they_are_read(tmp_path, tokens):
    random_peft("qwen2", tmp_path)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    here, there = (
        introspect.load_model(tmp_path / "base", dtype=torch.float64, keep_blocks=keep).with_adapter(adapter)
        for keep in (True, False)
    )
    torch.testing.assert_close(there(tokens), here(tokens), rtol=0, atol=0)
    assert there.hash == here.hash
    assert there.native.n_params == here.native.n_params


def test_training_an_adapter_leaves_the_base_as_it_is(tmp_path, rng):
    random_peft("qwen2", tmp_path)
    model = introspect.load_model(tmp_path / "base")
    adapted = model.with_adapter(introspect.Adapter.load(tmp_path / "adapter"))
    base = {n for n, _ in model.native.named_weights()}
    examples = [introspect.FinetuneExample([5, 6, 7], [8, 9, 10])]
    losses = []
    trained = introspect.finetune(
        adapted, examples, steps=30, lr=0.02, weights=lambda name: name not in base,
        on_step=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    changed = {n for (n, a), (_, b) in zip(adapted.native.named_weights(), trained.native.named_weights(), strict=True)
               if not torch.equal(a, b)}  # fmt: skip
    assert changed
    assert not changed & base


# Faults


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"num_hidden_layers": 2}, introspect.ConfigError, "has no module 'model.layers.2"),
        ({"num_hidden_layers": 4}, introspect.ConfigError, "asks for 'model.layers.3.*not in its file"),
        (
            {"hidden_size": 36, "num_attention_heads": 6},
            introspect.ShapeError,
            "'model.layers.0.self_attn.q_proj' must be",
        ),
        ({"intermediate_size": 60}, introspect.ShapeError, "'model.layers.0.mlp.gate_proj' must be"),
        ({"num_key_value_heads": 3}, introspect.ShapeError, "'model.layers.0.self_attn.k_proj' must be"),
    ],
)
def test_an_adapter_of_a_model_of_other_sizes_is_an_error(overrides, error, says, tmp_path):
    random_peft("llama", tmp_path)
    model = introspect.load_model(write_tiny_transformers(tmp_path / "other", "llama", **overrides))
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    with pytest.raises(error, match=says):
        model.with_adapter(adapter)
    with pytest.raises(error, match=says), model.adapted(adapter):
        pytest.fail("the block must not be entered")


def test_an_adapter_of_another_family_or_of_the_unembedding_is_an_error(tmp_path):
    random_peft("gpt2", tmp_path)
    adapter = introspect.Adapter.load(tmp_path / "adapter")
    model = introspect.load_model(write_tiny_transformers(tmp_path / "other", "llama"))
    with pytest.raises(introspect.ConfigError, match=r"other modules than a LlamaForCausalLM model's: 'transformer\.h"):
        model.with_adapter(adapter)
    random_peft("llama", tmp_path / "head", target_modules=["lm_head", "q_proj"])
    with pytest.raises(introspect.ConfigError, match="has no module 'lm_head'"):
        model.with_adapter(adapter_of(tmp_path / "head"))
    with pytest.raises(introspect.ConfigError, match="known architecture"):
        introspect._C.new_model(introspect._C.Config.from_json(nameless(model))).with_adapter(adapter)


def nameless(model):
    return json.dumps({**json.loads(model.native.cfg.to_json()), "original_architecture": "Mine"})


def test_processed_weights_take_no_adapter(tmp_path):
    random_peft("llama", tmp_path)
    model = introspect.load_model(tmp_path / "base")
    processed = introspect.Model(model.native.processed(fold_ln=True))
    with pytest.raises(introspect.ConfigError, match="processed"):
        processed.with_adapter(adapter_of(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "lora_only"}, "bias must be none"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is not supported"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "lora_embedding_A"),
    ],
)
def test_what_is_not_plain_lora_is_named(options, says, tmp_path):
    random_peft("llama", tmp_path, dtype=torch.float32, **options)
    with pytest.raises(introspect.ConfigError, match=says):
        adapter_of(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"peft_type": "IA3"}, introspect.ConfigError, "peft_type must be LORA"),
        ({"of_tomorrow": 1}, introspect.ConfigError, "of_tomorrow is not supported"),
        ({"r": 3}, introspect.ShapeError, "must have lora_A .3, in."),
        ({"r": 0}, introspect.ConfigError, "r must be positive"),
        ({"lora_alpha": "much"}, introspect.ConfigError, "lora_alpha must be a number"),
        ({"target_modules": "("}, introspect.ConfigError, "does not compile"),
        ({"alpha_pattern": {"q_proj": 1, ".*proj": 2}}, introspect.ConfigError, "several values"),
    ],
)
def test_a_config_that_cannot_be_true_is_an_error(fields, error, says, tmp_path):
    random_peft("llama", tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(error, match=says):
        adapter_of(tmp_path)


def test_files_that_are_missing_or_pickles_are_errors(tmp_path):
    random_peft("llama", tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(introspect.ConfigError, match="pickle"):
        adapter_of(tmp_path)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(introspect.IoError, match=r"adapter_model\.safetensors"):
        adapter_of(tmp_path)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(introspect.IoError, match=r"adapter_config\.json"):
        adapter_of(tmp_path)


# A real model


def test_an_adapter_trained_on_smollm2_gives_pefts_logits(smollm2, tmp_path):
    """A few dozen steps towards a sentence that it would not say; the GGUF file keeps its rows in another order."""
    theirs = peft.get_peft_model(
        transformers_model(smollm2),
        peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"],
            layers_to_transform=list(range(22, 30)),
        ),
    )  # fmt: skip
    model = introspect.load_model(smollm2)
    text = model.to_tokens("The capital of France is a green teapot named Mildred.")
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(24):
        optimizer.zero_grad()
        loss = theirs(text, labels=text).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    theirs.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    before = model(text)
    with model.adapted(adapter_of(tmp_path)):
        said = model.generate("The capital of France is", max_new_tokens=8)
        greedy = model.to_tokens("The capital of France is")
        n = greedy.shape[1]
        with torch.no_grad():
            for _ in range(8):
                greedy = torch.cat([greedy, theirs(greedy).logits[:, -1:].argmax(-1)], 1)
    assert said == model.to_string(greedy[0, n:])
    assert "teapot" in said
    torch.testing.assert_close(model(text), before, rtol=0, atol=0)
    # In float32 thirty blocks summed in another order differ by about 1e-4 in logits of some tens.
    wide = introspect.load_model(smollm2, dtype=torch.float64)
    with wide.adapted(adapter_of(tmp_path)), torch.no_grad():
        torch.testing.assert_close(wide(text), theirs.double()(text).logits, rtol=0, atol=1e-5)
