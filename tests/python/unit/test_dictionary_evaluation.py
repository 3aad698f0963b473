"""Evaluation of dictionaries against the formulas in numpy, and against plain hooks in every family of models."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dictionaries import decode, dictionary_at, encode
from tiny import ARCHITECTURES, tiny_loader

import introspect
from introspect import _C
from introspect.sae.contexts import Contexts, contexts_of
from introspect.sae.evaluation import evaluate
from introspect.sae.recovery import best_cosines, decoder_cosines, recovery

D = 48
FAMILIES = ("qwen2", "llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say which model")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_loader(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 101, (5, 11), generator=rng)


def added(sae, x, batches, y=None):
    statistics = _C.ReconstructionStatistics(sae.d_sae, sae.d_out)
    for i, rows in enumerate(x.split(batches)):
        statistics.add(sae, rows, None if y is None else y.split(batches)[i])
    return statistics.figures()


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "abstopk", "jumprelu"])
def test_figures_are_the_formulas_whatever_the_batches(rng, architecture):
    sae = dictionary_at("blocks.1.hook_resid_post", 12, architecture)
    x = torch.randn(37, 12, generator=rng, dtype=torch.float64) + 3
    f = encode(sae, x).numpy()
    y, y_hat = x.numpy(), decode(sae, torch.as_tensor(f), x).numpy()
    r = y - y_hat
    variance = ((y - y.mean(0)) ** 2).sum(1).mean()
    norm = np.linalg.norm
    expected = {
        "mse": (r**2).sum(1).mean(),
        "explained_variance": 1 - (r**2).sum(1).mean() / variance,
        "fraction_of_variance_explained": 1 - r.var(0).sum() / y.var(0).sum(),
        "cosine": ((y * y_hat).sum(1) / norm(y, axis=1) / norm(y_hat, axis=1)).mean(),
        "l2_norm_in": norm(y, axis=1).mean(),
        "l2_norm_out": norm(y_hat, axis=1).mean(),
        "l2_ratio": (norm(y_hat, axis=1) / norm(y, axis=1)).mean(),
        "relative_reconstruction_bias": (y_hat**2).sum(1).mean() / (y * y_hat).sum(1).mean(),
        "l0": (f != 0).sum(1).mean(),
        "l1": np.abs(f).sum(1).mean(),
        "dead_share": (f == 0).all(0).mean(),
    }
    for batches in (37, 10, 1):
        found = added(sae, x, batches)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
        np.testing.assert_allclose(found.density, (f != 0).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.mean_active, f.sum(0) / np.maximum((f != 0).sum(0), 1), rtol=1e-9)
        np.testing.assert_allclose(found.max_active, np.abs(f).max(0), rtol=1e-9)
    legacy = (1 - (r**2).sum(1) / ((y - y.mean(0)) ** 2).sum(1)).mean()
    assert added(sae, x, 37).explained_variance_legacy == pytest.approx(legacy, rel=1e-9)


def test_a_constant_error_is_seen_by_explained_variance_and_not_by_its_variance_form(rng):
    identity = torch.eye(6, dtype=torch.float64)
    sae = dictionary_at("blocks.0.hook_resid_post", 6, d_sae=12)
    weights = {"W_enc": torch.cat([identity, -identity]), "W_dec": torch.cat([identity, -identity])}
    sae = _C.Dictionary("standard", weights | {"b_dec": torch.full((6,), 2.0).double()}, subtract_b_dec=False)
    x = torch.randn(50, 6, generator=rng, dtype=torch.float64)
    found = added(sae, x, 50)  # gives x + 2
    assert found.fraction_of_variance_explained == pytest.approx(1, abs=1e-12)
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    assert found.explained_variance == pytest.approx(1 - 24 / variance, rel=1e-9)
    # one row at the mean rules the legacy form: its share is -infinity or nearly so
    rows = torch.cat([x, x.mean(0, keepdim=True) + 1e-6])
    assert added(sae, rows, 51).explained_variance_legacy < -1e6
    assert added(sae, rows, 51).explained_variance > -10


def test_rows_that_do_not_vary_have_no_share_of_variance():
    sae = dictionary_at("blocks.0.hook_resid_post", 6)
    assert np.isnan(added(sae, torch.ones(4, 6).double(), 4).explained_variance)


def by_hooks(model, sae, tokens, lengths, special, hook, hook_out):
    """Losses, divergences and reconstruction by plain hooks, one context after another."""
    sums = dict.fromkeys(("ce", "ce_spliced", "ce_zero", "kl_spliced", "kl_zero"), 0.0)
    n, followed, rows, recons, features = 0, 0, [], [], []
    for row, length in zip(tokens, lengths, strict=True):
        row = row[None, :length]
        read = torch.ones_like(row, dtype=torch.bool)
        for token in special:
            read &= row != token
        _, cache = model.run_with_cache(row, names_filter=[hook, hook_out])
        x, y = cache[hook].flatten(2), cache[hook_out].flatten(2)
        f = encode(sae, x)
        y_hat = decode(sae, f, x)
        rows.append(y[read])
        recons.append(y_hat[read])
        features.append(f[read])
        replaced = torch.where(read[..., None], y_hat, y)

        def logits(to, row=row):
            hooks = [(hook_out, lambda value, hook: to.reshape(value.shape))]
            return F.log_softmax(model.run_with_hooks(row, fwd_hooks=hooks), -1)

        own = F.log_softmax(model(row), -1)
        changed = {"spliced": logits(replaced), "zero": logits(torch.zeros_like(y))}
        pairs = read[:, :-1]
        for name, log_p in {"": own, **changed}.items():
            losses = -log_p[:, :-1].gather(-1, row[:, 1:, None])[..., 0]
            sums["ce" + (name and "_" + name)] += losses[pairs].sum().item()
            if name:
                sums[f"kl_{name}"] += (own.exp() * (own - log_p)).sum(-1)[read].sum().item()
        n += int(read.sum())
        followed += int(pairs.sum())
    found = {name: value / (followed if name.startswith("ce") else n) for name, value in sums.items()}
    y, y_hat = torch.cat(rows), torch.cat(recons)
    variance = y.square().sum(1).mean() - y.mean(0).square().sum()
    found["explained_variance"] = (1 - (y - y_hat).square().sum(1).mean() / variance).item()
    found["l0"] = (torch.cat(features) != 0).sum(1).double().mean().item()
    return found


SITES = {
    "residual": ("blocks.1.hook_resid_post", None),
    "heads": ("blocks.1.attn.hook_z", None),
    "transcoder": ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"),
    "across layers": ("blocks.0.hook_resid_pre", "blocks.2.hook_attn_out"),
    "embedding": ("hook_embed", None),
}


@pytest.mark.parametrize(("family", "site"), [*itertools.product(FAMILIES, ["residual", "transcoder"]),
                                              ("llama", "heads"), ("qwen2", "across layers"),
                                              ("gpt2", "embedding")])  # fmt: skip
def test_losses_and_reconstruction_are_those_of_plain_hooks(models, tokens, family, site):
    model = models(family)
    hook, hook_out = SITES[site]
    width = model.cfg.n_heads * model.cfg.d_head if site == "heads" else D
    sae = dictionary_at(hook, width, "jumprelu", hook_out=hook_out, skip=site == "transcoder", size=0.15)
    lengths, special = torch.tensor([11, 4, 11, 1, 7]), (int(tokens[0, 0]), 2)
    contexts = Contexts(tokens, lengths, special, torch.arange(5))
    expected = by_hooks(model, sae, tokens, lengths, special, hook, hook_out or hook)
    for batch_tokens in (1000, 12):
        found = evaluate(model, sae, contexts, batch_tokens=batch_tokens)
        numbers = found.to_dict()
        for name, value in expected.items():
            assert numbers[name] == pytest.approx(value, rel=1e-8, abs=1e-9), name
    assert found.reconstruction.rows == int(contexts.read().sum())
    score = (expected["ce_zero"] - expected["ce_spliced"]) / (expected["ce_zero"] - expected["ce"])
    assert found.splice.ce_score == pytest.approx(score, rel=1e-7)


def test_a_transcoder_is_compared_with_its_output_skip_included(models, tokens):
    model = models("llama")
    names = ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    x = cache["blocks.1.hook_mlp_in"].flatten(0, 1)
    y = cache["blocks.1.hook_mlp_out"].flatten(0, 1)
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    fit = torch.linalg.lstsq(
        torch.cat([x, ones], 1), y
    ).solution  # the best linear map, as the skip of a mute dictionary
    sae = dictionary_at("blocks.1.hook_mlp_in", D, hook_out="blocks.1.hook_mlp_out", skip=True)
    weights = {name: torch.zeros_like(value) for name, value in sae.weights.items()}
    weights |= {"W_skip": fit[:-1].T.contiguous(), "b_dec": fit[-1]}
    mute = _C.Dictionary("standard", weights, subtract_b_dec=False, origin=sae.origin)
    found = evaluate(model, mute, tokens, spliced=False).reconstruction
    residual = y - torch.cat([x, ones], 1) @ fit
    assert found.explained_variance == pytest.approx(1 - (residual.var(0).sum() / y.var(0).sum()).item(), rel=1e-8)
    assert found.l0 == 0 and found.dead_share == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dictionary_that_gives_everything_back_recovers_everything(models, tokens, family):
    identity = torch.eye(D, dtype=torch.float64)
    rows = torch.cat([identity, -identity])
    site = [_C.DictionarySite("blocks.1.hook_resid_pre", D)]
    sae = _C.Dictionary(
        "standard", {"W_enc": rows, "W_dec": rows, "b_dec": torch.zeros(D).double()},
        origin=_C.DictionaryOrigin(inputs=site),
    )  # fmt: skip
    found = evaluate(models(family), sae, tokens)
    assert found.reconstruction.explained_variance == pytest.approx(1, abs=1e-12)
    assert found.splice.ce_score == pytest.approx(1, abs=1e-9)
    assert found.splice.kl_spliced == pytest.approx(0, abs=1e-12)
    assert found.reconstruction.l0 == D


def test_without_losses_nothing_above_the_dictionary_is_run(models, tokens):
    model = models("qwen2")
    sae = dictionary_at("blocks.1.hook_resid_post", D)
    whole, alone = evaluate(model, sae, tokens), evaluate(model, sae, tokens, spliced=False)
    assert alone.splice is None
    assert alone.reconstruction.explained_variance == whole.reconstruction.explained_variance
    assert set(whole.to_saelens()) == {"model_behavior_preservation", "model_performance_preservation",
                                       "reconstruction_quality", "shrinkage", "sparsity"}  # fmt: skip


def test_what_does_not_fit_is_said_before_anything_runs(models, tokens):
    model = models("qwen2")
    with pytest.raises(_C.ShapeError, match="wide"):
        evaluate(model, dictionary_at("blocks.1.hook_resid_post", 13), tokens)
    with pytest.raises(_C.HookError, match=r"blocks\.9"):
        evaluate(model, dictionary_at("blocks.9.hook_resid_post", D), tokens)
    sae = dictionary_at("blocks.1.hook_resid_post", D)
    with pytest.raises(ValueError, match="special"):
        evaluate(model, sae, torch.full((2, 3), 7), special_tokens=[7])
    with pytest.raises(IndexError, match="token ids"):
        evaluate(model, sae, torch.full((2, 3), 101))
    with pytest.raises(_C.ShapeError, match="n_ctx"):
        evaluate(model, sae, torch.ones(1, 65, dtype=torch.int64))
    with pytest.raises(_C.ShapeError, match="int64"):
        evaluate(model, sae, torch.ones(2, 3))
    two = {"inputs": [_C.DictionarySite("blocks.1.hook_resid_post", 24, m) for m in (0, 1)]}
    with pytest.raises(_C.ConfigError, match="two models"):
        evaluate(model, dictionary_at("x", D, origin=two | {"outputs": two["inputs"]}), tokens)
    unknown = _C.Dictionary(sae.architecture, sae.weights)
    with pytest.raises(_C.ConfigError, match=r"hook point|not known"):
        evaluate(model, unknown, tokens)


def test_texts_become_contexts_by_the_dictionarys_rules(stories15m):
    model = introspect.load_model(stories15m)
    tokenizer, bos = model.tokenizer, model.tokenizer.bos_token_id
    text = "Once upon a time there was a little dog who liked to play in the garden."
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = contexts_of(model, [text, "Hello"])
    assert found.tokens[0, : found.lengths[0]].tolist() == [bos, *ids]
    assert found.special_tokens == (bos,)
    origin = {"context_size": 6, "prepend_bos": True}
    sae = dictionary_at("blocks.1.hook_resid_post", model.cfg.d_model, dtype=torch.float32, origin=origin)
    found = contexts_of(model, ["Hello", text], sae)
    rows = [row[:length].tolist() for row, length in zip(found.tokens, found.lengths, strict=True)]
    assert rows[1:] == [[bos, *ids[first : first + 5]] for first in range(0, len(ids), 5)]
    assert found.texts.tolist() == [0] + [1] * (len(rows) - 1)
    bare = dictionary_at("x", 4, origin={"prepend_bos": False})
    assert contexts_of(model, text, bare).tokens[0].tolist() == ids
    with pytest.raises(ValueError, match="at least one text"):
        contexts_of(model, [])


def test_recovery_is_the_best_matching_by_brute_force(rng):
    true = torch.randn(4, 7, generator=rng, dtype=torch.float64)
    learned = torch.randn(6, 7, generator=rng, dtype=torch.float64)
    learned[2] = -3 * true[1]
    cosines = F.normalize(true, dim=1) @ F.normalize(learned, dim=1).T
    best = max(
        sum(cosines[i, j].abs().item() for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(6), 4)
    )
    found = recovery(learned, true)
    assert found.mcc == pytest.approx(best / 4)
    assert found.mmcs == pytest.approx(cosines.abs().amax(1).mean().item())
    assert [1, 2] in found.matches.tolist() and found.found == 0.25
    torch.testing.assert_close(decoder_cosines(true, learned), cosines)
    values, ids = best_cosines(true, learned)
    torch.testing.assert_close(values, cosines.max(1).values)
    assert ids.tolist() == cosines.argmax(1).tolist()
    own = F.normalize(true, dim=1) @ F.normalize(true, dim=1).T - 3 * torch.eye(4)
    torch.testing.assert_close(best_cosines(true)[0], own.max(1).values)


def test_every_family_named_here_is_one_of_the_tiny_models():
    assert set(FAMILIES) <= set(ARCHITECTURES)
