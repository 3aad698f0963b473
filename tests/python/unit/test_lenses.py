"""Lenses against transformers, formulas in torch and loops of hooks; their files; what bad input gets."""

import hashlib
import json

import numpy as np
import pytest
import torch
from reference import exact_softmax
from tiny import tiny_transformers, write_tiny
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.analysis import JacobianLens, Lens, TunedLens, logit_lens, patchscope, trajectory
from introspect.cli.app import app

FAMILIES = ["qwen2", "llama", "gemma2", "gemma3 layer types", "gpt2", "gpt_neox", "phi3"]
TOKENS = torch.tensor([[5, 17, 40, 3, 99, 62, 8, 21, 54, 77, 30, 12]])
SAME = {"rtol": 0, "atol": 1e-9}  # float64


@pytest.fixture(autouse=True)
def softmax_of_transformers_in_float64():
    with exact_softmax():
        yield


def pair(name):
    theirs = tiny_transformers(name)
    return theirs, introspect.load_model(theirs, dtype="float64")


def backbone(theirs):
    return theirs.base_model


def final_norm(theirs):
    base = backbone(theirs)
    return next(getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(base, n))


def their_readout(theirs, resid):
    """log-probabilities of residuals through norm, unembedding and soft cap of a transformers model."""
    logits = theirs.get_output_embeddings()(final_norm(theirs)(resid))
    if cap := getattr(theirs.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)


@torch.no_grad()
def their_streams(theirs, tokens=TOKENS):
    """What enters each block, and what leaves the last one, [T, D] each."""
    base, last = backbone(theirs), []
    handle = final_norm(theirs).register_forward_hook(lambda module, given, out: last.append(given[0]))
    hidden = base(tokens, output_hidden_states=True).hidden_states
    handle.remove()
    return [h[0] for h in hidden[:-1]] + [last[0][0]]


@pytest.fixture(scope="module")
def llama():
    return pair("llama")


# ---- reading ----


@pytest.mark.parametrize("name", FAMILIES)
def test_logit_lens_is_norm_and_unembedding_of_every_layer(name):
    theirs, model = pair(name)
    read = logit_lens(model, TOKENS, top_k=4, targets=[7, 40])
    with torch.no_grad():
        expected = torch.stack([their_readout(theirs, resid) for resid in their_streams(theirs)])
        torch.testing.assert_close(expected[-1], theirs(TOKENS).logits[0].log_softmax(-1), **SAME)
    assert read.streams == ["embed", *map(str, range(model.cfg.n_layers))] and read.layers[0] == -1
    top = expected.topk(4)
    torch.testing.assert_close(read.top_log_probs, top.values, **SAME)
    assert [[list(map(int, cell)) for cell in row] for row in read.top_tokens] == top.indices.tolist()
    for token in (7, 40):
        torch.testing.assert_close(read.log_probs[str(token)], expected[..., token], **SAME)
        rank = 1 + (expected > expected[..., token, None]).sum(-1)
        assert torch.equal(read.ranks[str(token)], rank)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_measures_are_their_formulas_and_the_models_own_row_is_zero(name):
    theirs, model = pair(name)
    read = trajectory(model, TOKENS)
    with torch.no_grad():
        log_q = torch.stack([their_readout(theirs, resid) for resid in their_streams(theirs)])
    log_p, q = log_q[-1], log_q.exp()
    p, m = log_p.exp(), (log_p.exp() + q) / 2
    kl = lambda a, b: (a * (a.log() - b.log())).sum(-1)  # noqa: E731
    expected = {
        "entropy": torch.distributions.Categorical(logits=log_q).entropy(),
        "max_probability": q.amax(-1),
        "forward_kl": kl(p.expand_as(q), q),
        "reverse_kl": kl(q, p),
        "js": (kl(p.expand_as(q), m) + kl(q, m)) / 2,
        "symmetric_kl": (kl(p.expand_as(q), q) + kl(q, p)) / 2,
        "total_variation": (p - q).abs().sum(-1) / 2,
        "cross_entropy": -log_q[:, :-1].gather(-1, TOKENS[0, 1:].view(1, -1, 1).expand(len(q), -1, 1))[..., 0],
    }
    for measure, value in expected.items():
        torch.testing.assert_close(read.measures[measure][:, : value.shape[1]], value, rtol=0, atol=1e-8)
    own = log_q[:, :-1].gather(-1, TOKENS[0, 1:].view(1, -1, 1).expand(len(q), -1, 1))
    assert torch.equal(read.measures["rank"][:, :-1], 1.0 + (log_q[:, :-1] > own).sum(-1))
    assert read.measures["rank"][:, -1].isnan().all() and read.measures["cross_entropy"][:, -1].isnan().all()
    for measure in ("forward_kl", "reverse_kl", "symmetric_kl", "total_variation"):
        assert (read.measures[measure][-1] == 0).all()
    assert read.measures["js"][-1].abs().max() < 1e-15


def test_any_budget_positions_and_layers_read_the_same(llama):
    _, model = llama
    whole = trajectory(model, TOKENS, top_k=3, targets=[9])
    for budget in (1, 20_000, 200_000):
        some = trajectory(
            model, TOKENS, top_k=3, targets=[9], layers=[1, -1], positions=[-1, 2, 5], memory_budget=budget
        )
        assert some.streams == ["1", "embed"] and some.positions == [11, 2, 5]
        pick = lambda x: x[[2, 0]][:, [11, 2, 5]]  # noqa: E731
        torch.testing.assert_close(some.top_log_probs, pick(whole.top_log_probs), **SAME)
        torch.testing.assert_close(some.log_probs["9"], pick(whole.log_probs["9"]), **SAME)
        for name, values in whole.measures.items():
            torch.testing.assert_close(some.measures[name], pick(values), equal_nan=True, **SAME)


def test_between_attention_and_mlp(llama):
    theirs, model = llama
    read = logit_lens(model, TOKENS, top_k=1, incl_mid=True, targets=[3])
    assert read.streams == ["embed", "0_mid", "0", "1_mid", "1", "2_mid", "2"]
    _, cache = model.run_with_cache(TOKENS, "blocks.1.hook_resid_mid")
    with torch.no_grad():
        expected = their_readout(theirs, cache["blocks.1.hook_resid_mid"][0])
    torch.testing.assert_close(read.log_probs["3"][3], expected[:, 3], **SAME)


def test_steering_in_effect_is_read(llama):
    _, model = llama
    rng = torch.Generator().manual_seed(1)
    vector = introspect.ControlVector("llama", {1: torch.randn(48, generator=rng)})
    plain = logit_lens(model, TOKENS, top_k=0, targets=[3]).log_probs["3"]
    with model.steer(vector):
        steered = logit_lens(model, TOKENS, top_k=0, targets=[3]).log_probs["3"]
        logits = model(TOKENS)[0].log_softmax(-1)
    torch.testing.assert_close(steered[-1], logits[:, 3], **SAME)
    assert torch.equal(steered[:2], plain[:2]) and (steered[2] != plain[2]).any()


def test_only_the_layers_that_are_read_run(llama):
    _, model = llama
    ran = []
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    hooks = [(name, lambda x, hook: ran.append(hook.name)) for name in names]
    with model.hooks(hooks):
        logit_lens(model, TOKENS, layers=[-1, 1])
    assert ran == names[:2]


def test_table_and_pictures(llama):
    _, model = llama
    read = trajectory(model, TOKENS, top_k=2, targets=[3])
    table = read.to_pandas()
    assert len(table) == 4 * 12 and {"stream", "layer", "position", "token", "top_1", "p_2", "forward_kl"} <= {*table}
    assert table["rank of '3'"].iloc[13] == read.ranks["3"][1, 1]
    for what in (None, "3", "js"):
        assert read.plot(what)._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="what must be one of"):
        read.plot("nonsense")


def test_bad_input_of_a_reading(llama):
    _, model = llama
    for options, error, said in (
        ({"layers": [3]}, IndexError, "layers"),
        ({"layers": [-2]}, IndexError, "layers"),
        ({"positions": [12]}, IndexError, "12 tokens"),
        ({"top_k": 102}, ValueError, "top_k"),
        ({"targets": [101]}, (IndexError, ValueError), "101"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
    ):
        with pytest.raises(error, match=said):
            logit_lens(model, TOKENS, **options)
    with pytest.raises(ValueError, match="one text"):
        logit_lens(model, torch.cat([TOKENS, TOKENS]))
    _, parallel = pair("gpt_neox")
    with pytest.raises(introspect.HookError, match="hook_resid_mid"):
        logit_lens(parallel, TOKENS, incl_mid=True)


# ---- tuned lenses ----


def random_lens(model, seed=0, bias=True):
    rng = torch.Generator().manual_seed(seed)
    d = model.cfg.d_model
    draw = lambda *shape: torch.randn(*shape, generator=rng) / d  # noqa: E731
    layers = range(-1, model.cfg.n_layers - 1)
    return Lens("tuned", model, {layer: (draw(d, d), draw(d) if bias else None) for layer in layers})


def test_a_tuned_lens_adds_its_translators_output(llama):
    theirs, model = llama
    lens = random_lens(model)
    read = logit_lens(model, TOKENS, lens=lens, top_k=0, targets=[3])
    with torch.no_grad():
        for i, resid in enumerate(their_streams(theirs)[:-1]):
            W, b = lens.translators[i - 1]
            expected = their_readout(theirs, resid + resid @ W.double().T + b.double())
            torch.testing.assert_close(read.log_probs["3"][i], expected[:, 3], **SAME)
    streams = torch.stack(their_streams(theirs), 1)
    torch.testing.assert_close(
        lens.logits(model, streams, lens.layers).log_softmax(-1)[..., 3].T, read.log_probs["3"], **SAME
    )


def test_an_untrained_tuned_lens_is_the_logit_lens(llama):
    _, model = llama
    lens = TunedLens.train(model, TOKENS, steps=0)
    for name, values in trajectory(model, TOKENS, lens=lens).measures.items():
        assert torch.equal(values.nan_to_num(), trajectory(model, TOKENS).measures[name].nan_to_num())


TEXTS = [TOKENS[0].tolist(), TOKENS[0].flip(0).tolist(), [4, 9, 2, 33]]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_is_what_autograd_and_torch_optim_do(name, optimizer):
    theirs, model = pair(name)
    theirs.requires_grad_(False)
    bias = name != "qwen2"
    steps, lr, clip = 3, 0.7, 0.05
    losses = []
    lens = TunedLens.train(
        model, TEXTS, steps=steps, tokens_per_step=28, optimizer=optimizer, lr=lr, clip=clip, bias=bias, context=12,
        on_step=lambda step, kl: losses.append(kl),
    )  # fmt: skip
    streams = [their_streams(theirs, torch.tensor([text])) for text in TEXTS]
    h = [torch.cat([of_text[i] for of_text in streams]) for i in range(model.cfg.n_layers + 1)]
    log_p = their_readout(theirs, h[-1])
    d = model.cfg.d_model
    linear = [torch.nn.Linear(d, d, bias=bias, dtype=torch.float64) for _ in h[:-1]]
    parameters = [p for one in linear for p in one.parameters()]
    for p in parameters:
        torch.nn.init.zeros_(p)
    if optimizer == "sgd":
        optim = torch.optim.SGD(parameters, lr=lr * 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    else:
        optim = torch.optim.Adam(parameters, lr=lr * 1e-3, betas=(0.9, 0.999), amsgrad=True, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: (steps - step) / steps)
    for step in range(steps):
        kl = []
        for x, translator in zip(h, linear, strict=False):
            log_q = their_readout(theirs, x + translator(x))
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        # the norms of both sides are float32 inside, and their inputs differ in the last digits of float64
        torch.testing.assert_close(losses[step], torch.stack(kl).detach(), rtol=0, atol=1e-8)
        optim.zero_grad()
        sum(kl).backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optim.step()
        schedule.step()
    # Adam divides by a gradient's size: of the smallest ones what float32 norms leave uncertain counts as much
    atol = 1e-8 if optimizer == "sgd" else 2e-7
    for layer, translator in enumerate(linear):
        W, b = lens.translators[layer - 1]
        torch.testing.assert_close(W, translator.weight.detach(), rtol=0, atol=atol)
        assert (b is None) == (not bias)
        if bias:
            torch.testing.assert_close(b, translator.bias.detach(), rtol=0, atol=atol)


def test_training_lowers_the_kl_at_every_layer_and_repeats_and_goes_on(llama):
    _, model = llama
    rng = torch.Generator().manual_seed(3)
    texts = [torch.randint(101, (20,), generator=rng).tolist() for _ in range(40)]
    held_out = torch.randint(101, (1, 30), generator=rng)
    how = {"steps": 40, "tokens_per_step": 100, "optimizer": "adam", "lr": 20, "clip": 1e9}
    lens = TunedLens.train(model, texts, **how)
    before, after = (trajectory(model, held_out, lens=one).measures["forward_kl"].mean(1) for one in (None, lens))
    assert (after[:-1] < before[:-1]).all()
    assert TunedLens.train(model, texts, **how).hash == lens.hash
    assert TunedLens.train(model, texts, **how, memory_budget=30_000).notes["kl_of_last_step"] == pytest.approx(
        lens.notes["kl_of_last_step"], abs=1e-7
    )
    assert TunedLens.train(model, texts, steps=0, start=lens).hash == lens.hash


def test_regression_is_weighted_ridge_regression_of_the_last_residual(llama):
    theirs, model = llama
    lens = TunedLens.regression(model, TEXTS, ridge=0.1, context=12)
    streams = [their_streams(theirs, torch.tensor([text])) for text in TEXTS]
    h = [torch.cat([of_text[i] for of_text in streams]) for i in range(4)]
    weight = h[-1].square().mean(-1, keepdim=True).rsqrt()
    for i in range(3):
        # ridge as least squares with more rows: zeros for what the penalty draws to zero
        x = torch.cat([h[i], torch.ones(len(h[i]), 1, dtype=torch.float64)], 1) * weight
        penalty = (0.1 * x[:, :-1].square().sum(0).mean()).sqrt() * torch.eye(48, 49, dtype=torch.float64)
        y = torch.cat([(h[-1] - h[i]) * weight, torch.zeros(48, 48, dtype=torch.float64)])
        solution = torch.linalg.lstsq(torch.cat([x, penalty]), y, driver="gelsd").solution
        W, b = lens.translators[i - 1]
        torch.testing.assert_close(W, solution[:-1].T, rtol=0, atol=1e-7)
        torch.testing.assert_close(b, solution[-1], rtol=0, atol=1e-7)


def test_bad_input_of_training(llama):
    _, model = llama
    for texts, options, error, said in (
        ([], {}, (ValueError, TypeError), "text"),
        ([[1], []], {}, ValueError, "text 1 has none"),
        ([[101]], {}, IndexError, "0 to 100"),
        ([[1]], {"optimizer": "muon"}, ValueError, "sgd or adam"),
        ([[1]], {"lr": float("nan")}, ValueError, "lr"),
        ([[1]], {"momentum": 1.0}, ValueError, "momentum"),
        ([[1]], {"context": 0}, ValueError, "context"),
        ([[1]], {"tokens_per_step": 0}, ValueError, "tokens_per_step"),
    ):
        with pytest.raises(error, match=said):
            TunedLens.train(model, texts, **options)
    vector = introspect.ControlVector("llama", {1: torch.ones(48)})
    with model.steer(vector), pytest.raises(introspect.ConfigError, match="steering"):
        TunedLens.train(model, TEXTS)

    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TunedLens.train(model, TEXTS, progress=stop)


# ---- Jacobian lenses ----


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_jacobians_are_autograds(name):
    theirs, model = pair(name)
    prompts = [TOKENS[0].tolist(), TOKENS[0].flip(0)[:9].tolist()]
    lens = JacobianLens.compute(model, prompts, skip_first=2, directions=5)
    L, d = model.cfg.n_layers, model.cfg.d_model
    expected = torch.zeros(L - 1, d, d, dtype=torch.float64)
    blocks = next(m for m in theirs.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == L)
    for prompt in prompts:
        tokens, valid = torch.tensor([prompt]), range(2, len(prompt) - 1)
        for layer in range(L - 1):
            out = []

            def record(module, given, result, out=out):
                out.append(result[0] if isinstance(result, tuple) else result)

            handles = [block.register_forward_hook(record) for block in (blocks[layer], blocks[-1])]
            theirs(tokens)
            for handle in handles:
                handle.remove()
            first, last = out
            for i in range(d):
                # the sum over targets at or after a source: earlier ones have no gradient
                total = sum(last[0, t, i] for t in valid)
                (gradient,) = torch.autograd.grad(total, first, retain_graph=True)
                expected[layer, i] += gradient[0, list(valid)].mean(0) / len(prompts)
    assert lens.layers == [*range(L - 1), L - 1]
    for layer in range(L - 1):
        torch.testing.assert_close(lens.translators[layer][0], expected[layer], **SAME)
    read = logit_lens(model, TOKENS, lens=lens, top_k=0, targets=[3])
    assert read.streams == [str(layer) for layer in range(L)]
    with torch.no_grad():
        log_q = their_readout(theirs, their_streams(theirs)[1] @ expected[0].T)
    torch.testing.assert_close(read.log_probs["3"][0], log_q[:, 3], **SAME)


def test_bad_input_of_jacobians(llama):
    _, model = llama
    with pytest.raises(ValueError, match="more than 17 tokens"):
        JacobianLens.compute(model, TEXTS)
    with pytest.raises(IndexError, match="layers"):
        JacobianLens.compute(model, TEXTS, layers=[2], skip_first=1)
    lens = JacobianLens.compute(model, [TEXTS[0]], layers=[1], skip_first=1)
    with pytest.raises(IndexError, match="reads"):
        logit_lens(model, TOKENS, lens=lens, layers=[0])
    with pytest.raises(ValueError, match="incl_mid"):
        logit_lens(model, TOKENS, lens=lens, incl_mid=True)


# ---- files ----


def assert_same_lens(one, other):
    assert (one.kind, one.hash, one.layers) == (other.kind, other.hash, other.layers)
    assert (one.model_hash, one.unembed_hash, one.notes) == (other.model_hash, other.unembed_hash, other.notes)


@pytest.mark.parametrize("bias", [True, False])
def test_folder_and_safetensors_hold_a_tuned_lens(llama, tmp_path, bias):
    _, model = llama
    lens = random_lens(model, bias=bias)
    for path in (tmp_path / "lens", tmp_path / "lens.safetensors"):
        lens.save(path)
        assert_same_lens(TunedLens.load(path), lens)
    parameters = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    wanted = [f"{i}.{part}" for i in range(3) for part in (("weight", "bias") if bias else ("weight",))]
    assert list(parameters) == wanted
    translators = torch.nn.ModuleList(torch.nn.Linear(48, 48, bias=bias) for _ in range(3))
    translators.load_state_dict(parameters)
    assert torch.equal(translators[0].weight, lens.translators[-1][0])
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    assert (config["d_model"], config["num_hidden_layers"], config["bias"]) == (48, 3, bias)
    assert config["lens_type"] == "linear_tuned_lens"


def test_a_folder_of_the_tuned_lens_package_is_read(llama, tmp_path):
    theirs, model = llama
    translators = torch.nn.ModuleList(torch.nn.Linear(48, 48) for _ in range(3))
    torch.save(translators.state_dict(), tmp_path / "params.pt")
    W_U = theirs.get_output_embeddings().weight.detach().float().numpy()
    config = {
        "base_model_name_or_path": "x/y", "d_model": 48, "num_hidden_layers": 3, "bias": True,
        "base_model_revision": None, "lens_type": "linear_tuned_lens",
        "unembed_hash": hashlib.sha256(str.encode(np.array_str(W_U, precision=1))).hexdigest(),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    lens = TunedLens.load(tmp_path)
    assert torch.equal(lens.translators[1][1], translators[2].bias) and lens.model_name == "x/y"
    logit_lens(model, TOKENS, lens=lens)
    config["unembed_hash"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(introspect.ConfigError, match="another unembedding"):
        logit_lens(model, TOKENS, lens=TunedLens.load(tmp_path))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 1, 30, 1e5])
def test_unembedding_hash_is_numpys(tmp_path, scale):
    from safetensors.torch import load_file, save_file

    folder = write_tiny(tmp_path / "m", vocab_size=211)
    state = load_file(folder / "model.safetensors")
    for seed in range(25):
        rng = torch.Generator().manual_seed(seed)
        W_U = torch.randn(211, 32, generator=rng, dtype=torch.float64) * scale
        W_U[:3, :3] *= torch.rand(3, 3, generator=rng) < 0.6  # zeros among them
        W_U = W_U.to([torch.float32, torch.bfloat16][seed % 2]).double()
        save_file({**state, "lm_head.weight": W_U}, folder / "model.safetensors")
        text = np.array_str(W_U.float().numpy(), precision=1)
        model = introspect.load_model(folder)
        assert introspect._C.unembedding_hash(model) == hashlib.sha256(text.encode()).hexdigest(), text


def test_a_jacobian_lens_is_its_packages_file(llama, tmp_path):
    _, model = llama
    lens = JacobianLens.compute(model, [TEXTS[0]], skip_first=2)
    lens.save(tmp_path / "lens.pt")
    payload = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert (payload["n_prompts"], payload["source_layers"], payload["d_model"]) == (1, [0, 1], 48)
    assert payload["J"][1].dtype == torch.float16
    torch.testing.assert_close(payload["J"][1].double(), lens.translators[1][0], rtol=1e-3, atol=1e-3)
    read = JacobianLens.load(tmp_path / "lens.pt")
    assert read.layers == [0, 1, 2] and read.model_hash == model.hash
    lens.save(tmp_path / "lens.safetensors")
    assert_same_lens(Lens.load(tmp_path / "lens.safetensors"), lens)
    torch.save({"J": {0: torch.eye(48), 1: torch.eye(48)}, "n_prompts": 7, "source_layers": [0, 1], "d_model": 48},
               tmp_path / "published.pt")  # fmt: skip
    published = JacobianLens.load(tmp_path / "published.pt")
    assert published.notes == {"n_prompts": 7}
    ours, plain = (logit_lens(model, TOKENS, lens=one, layers=[0, 1, 2]) for one in (published, None))
    assert torch.equal(ours.top_log_probs, plain.top_log_probs)  # the identity is the logit lens


def test_a_lens_of_another_model_is_refused(llama, tmp_path):
    _, model = llama
    lens = random_lens(model)
    other = introspect.load_model(tiny_transformers("llama", seed=1), dtype="float64")
    with pytest.raises(introspect.ConfigError, match=r"another unembedding.*rebound"):
        logit_lens(other, TOKENS, lens=lens)
    logit_lens(other, TOKENS, lens=lens.rebound(other))
    _, wide = pair("qwen3")
    for bad in (pair("gemma3")[1], introspect.load_model(write_tiny(tmp_path / "m"))):
        with pytest.raises(introspect.ShapeError, match="3 layers of width 48"):
            logit_lens(bad, TOKENS, lens=lens)
    with pytest.raises(introspect.ConfigError):
        logit_lens(wide, TOKENS, lens=lens)


def test_damaged_and_other_files_are_errors(llama, tmp_path):
    _, model = llama
    lens = random_lens(model)
    lens.save(tmp_path / "lens")
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    (tmp_path / "x.txt").write_text("x")
    torch.save({"a": 1}, tmp_path / "other.pt")
    introspect.io.save_safetensors(tmp_path / "other.safetensors", [("x", torch.zeros(2))])
    for path, error in (
        (tmp_path / "missing", introspect.IoError), (tmp_path / "x.txt", introspect.ConfigError),
        (tmp_path / "other.pt", introspect.ConfigError), (tmp_path / "other.safetensors", introspect.ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            Lens.load(path)
    for change in ({"d_model": 47}, {"num_hidden_layers": 4}, {"lens_type": "other"}, {"d_model": "48"}):
        (tmp_path / "lens" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(introspect.Error):
            TunedLens.load(tmp_path / "lens")
    with pytest.raises(introspect.ConfigError, match="tuned"):
        Lens.logit(model).save(tmp_path / "folder")
    with pytest.raises(introspect.ConfigError, match="Jacobian"):
        lens.save(tmp_path / "lens.pt")
    lens.save(tmp_path / "tuned.safetensors")
    with pytest.raises(introspect.ConfigError, match="jacobian lens, got a tuned"):
        JacobianLens.load(tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError, match="finite"):
        Lens("tuned", model, {0: (torch.full((48, 48), float("nan")), None)})


# ---- patchscope ----


def test_patchscope_is_a_loop_of_hooks(llama):
    _, model = llama
    source, target = TOKENS, TOKENS.flip(1)[:, :7]
    _, cache = model.run_with_cache(source)
    for target_layer in (None, 0):
        read = patchscope(model, source, target, source_positions=[4, -1], target_position=3, target_layer=target_layer)
        assert read.positions == [4, 11] and read.layers == [0, 1, 2]
        for layer in range(3):
            for p, position in enumerate((4, 11)):
                value = cache[f"blocks.{layer}.hook_resid_post"][0, position]

                def put(x, hook, value=value):
                    x[0, 3] = value
                    return x

                name = f"blocks.{layer if target_layer is None else target_layer}.hook_resid_post"
                logits = model.run_with_hooks(target, fwd_hooks=[(name, put)])
                torch.testing.assert_close(read.log_probs[layer, p], logits[0, -1].log_softmax(-1), **SAME)
    assert len(read.to_pandas(3)) == 6
    twice = patchscope(model, source, target, layers=[1, 1], source_positions=[4, 4], target_position=3)
    assert torch.equal(twice.log_probs[0, 0], twice.log_probs[1, 1])
    for options in ({"layers": [3]}, {"source_positions": [12]}, {"target_position": 7}, {"target_layer": 3}):
        with pytest.raises(IndexError, match="patchscope"):
            patchscope(model, source, target, **options)


# ---- experiments and the command line ----


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_tiny_chat(tmp_path_factory.mktemp("chat") / "model")
    return folder, introspect.load_model(folder)


def run(model, store=None, **options):
    vector = introspect.ControlVector(model.native.cfg.original_architecture, {1: torch.ones(32)})
    return introspect.run_experiment(
        model, "no_info", vectors={"cat": vector}, strengths=[2.0], layers=[(1, 2)], nulls=0, questions=[],
        store=store, **options,
    )  # fmt: skip


def test_experiments_read_through_a_tuned_lens_and_stores_know_it_by_its_content(chat, tmp_path):
    _, model = chat
    random_lens(model).save(tmp_path / "a")
    random_lens(model).save(tmp_path / "b.safetensors")
    random_lens(model, seed=1).save(tmp_path / "c")
    store = tmp_path / "cells.sqlite"
    sizes, results = [], []
    for lens in (True, tmp_path / "a", tmp_path / "b.safetensors", tmp_path / "c"):
        results.append(run(model, store=store, lens=lens))
        sizes.append(len(introspect.Store(store)))
    n = sizes[0]
    assert sizes == [n, 2 * n, 2 * n, 3 * n]
    rows = [result.rows[0]["injected"]["lens"]["log_odds"] for result in results]
    assert rows[1] == rows[2] != rows[3] and rows[0] != rows[1]
    assert rows[0][-1] == pytest.approx(rows[1][-1], abs=1e-5)  # the last row is the model's own


def test_a_logit_lens_written_as_a_file_reads_as_true_does(chat, tmp_path):
    _, model = chat
    TunedLens.train(model, [[1, 2, 3]], steps=0).save(tmp_path / "identity")
    ours, plain = run(model, lens=tmp_path / "identity"), run(model, lens=True)
    assert ours.rows[0]["injected"]["lens"] == plain.rows[0]["injected"]["lens"]


def test_an_experiments_bad_lens_is_an_error_before_it_starts(chat, tmp_path, llama):
    _, model = chat
    random_lens(llama[1]).save(tmp_path / "other")
    for lens, error in ((tmp_path / "missing", introspect.IoError), (tmp_path / "other", introspect.ShapeError)):
        with pytest.raises(error):
            run(model, lens=lens)
    with pytest.raises((ValueError, introspect.ConfigError), match="lens"):
        run(model, readouts={"lens": 3})


def test_command(chat, tmp_path):
    folder, model = chat
    invoke = lambda *arguments: CliRunner().invoke(app, ["lens", str(folder), "a cat", *map(str, arguments)])  # noqa: E731
    done = invoke()
    assert done.exit_code == 0, done.output
    assert "KL to model" in done.stdout and "embed" in done.stdout
    random_lens(model).save(tmp_path / "lens")
    shown = json.loads(
        invoke(
            "--tuned",
            tmp_path / "lens",
            "--json",
            "--target",
            " yes",
            "-o",
            tmp_path / "x.png",
            "-o",
            tmp_path / "x.csv",
        ).stdout
    )
    assert shown["lens"] == "tuned" and [one["stream"] for one in shown["layers"]] == ["embed", "0", "1", "2"]
    assert shown["layers"][-1]["forward_kl"] == 0
    expected = trajectory(model, "a cat", lens=TunedLens.load(tmp_path / "lens"), targets=[" yes"])
    assert shown["layers"][1]["targets"][" yes"]["log_prob"] == pytest.approx(
        float(expected.log_probs[" yes"][1, -1]), abs=1e-4
    )
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG" and "forward_kl" in (tmp_path / "x.csv").read_text()
    assert invoke("--tuned", tmp_path / "nothing").exit_code == 2
    assert invoke("--target", "not one token at all").exit_code == 1
