"""Training of tuned lenses against autograd and torch.optim, and Jacobians against autograd."""

import pytest
import torch
from lenses import FAMILIES, SAME, TOKENS, pair, random_lens, their_readout, their_streams
from reference import exact_softmax

import introspect
from introspect.analysis import JacobianLens, TunedLens, logit_lens, trajectory


@pytest.fixture(autouse=True)
def softmax_of_transformers_in_float64():
    with exact_softmax():
        yield


@pytest.fixture(scope="module")
def llama():
    return pair("llama")


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
        ([[1], []], {}, ValueError, "number 1 of texts has none"),
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


# Jacobian lenses


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
