"""Code written for TransformerLens, with loops over a cache, runs on HookedTransformer and gives our own numbers."""

import pytest
import torch

import introspect
from introspect import analysis

PROMPT = "The capital of France is Paris. The capital of Germany is"


@pytest.fixture(scope="module")
def model(smollm2):
    return introspect.HookedTransformer.from_pretrained_no_processing(str(smollm2))


def classify_attention_heads(model, tokens, half, threshold=0.4):
    """Head classification by hand: repeated tokens, and attention summed along diagonals."""
    _, cache = model.run_with_cache(tokens, return_type=None, names_filter=lambda name: name.endswith("pattern"))
    heads = {}
    for layer in range(model.cfg.n_layers):
        every = cache["pattern", layer]
        pattern, n = every.mean(0), every.shape[-1]
        second = torch.arange(n - half, n)
        for head in range(model.cfg.n_heads):
            A = pattern[head]
            entropy = torch.special.entr(every[:, head, 1:]).sum(-1) / torch.arange(2, n + 1).log()
            scores = {
                "previous_token": A.diagonal(-1).mean().item(),
                "first_token": A[1:, 0].mean().item(),
                "diagonal": A.diagonal()[1:].mean().item(),
                "duplicate_token": A[second, second - half].mean().item(),
                "induction": A[second, second - half + 1].mean().item(),
                "entropy": entropy.mean().item(),
            }
            kinds = ("induction", "duplicate_token", "previous_token", "diagonal")
            best = max(kinds, key=lambda kind: scores[kind])
            if scores[best] < threshold:
                best = "first_token" if scores["first_token"] >= threshold else "other"
            heads[layer, head] = {"type": best, "scores": scores}
    return heads


def test_heads_classified_by_hand(model):
    half = 25
    tokens = analysis.repeated_tokens(model, n_tokens=half, n_sequences=2)
    theirs = classify_attention_heads(model, tokens, half)
    ours = analysis.classify_attention_heads(model, n_tokens=half, n_sequences=2, copying=False)
    assert set(ours) == set(theirs)
    for at, expected in theirs.items():
        got = {name: ours[at]["scores"][name] for name in expected["scores"]}
        assert got == pytest.approx(expected["scores"], abs=2e-5), at
        kind = {"anti_induction": "induction", "uniform": "other", "mixed": "other"}
        assert kind.get(ours[at]["type"], ours[at]["type"]) == expected["type"]
    assert sum(facts["type"] in ("induction", "anti_induction") for facts in ours.values()) >= 3


def logit_lens(model, prompt, token):
    """The logit lens by hand: rank and probability of a token after every block."""
    _, cache = model.run_with_cache(prompt)
    read = []
    for layer in range(model.cfg.n_layers):
        logits = (model.ln_final(cache["resid_post", layer][:, -1:]) @ model.W_U + model.b_U)[0, 0]
        read.append((1 + int((logits > logits[token]).sum()), float(logits.softmax(0)[token])))
    return read


def debug_prediction(model, prompt, expected, actual):
    """Prediction debugging by hand: what each layer adds to the difference, through the final norm's cached scale."""
    expected, actual = model.to_single_token(expected), model.to_single_token(actual)
    logits, cache = model.run_with_cache(prompt)
    direction = (model.W_U[:, expected] - model.W_U[:, actual]) * model.ln_final.w
    scale = cache["ln_final.hook_scale"][0, -1]
    layers = []
    for layer in range(model.cfg.n_layers):
        attn, mlp = (cache[name, layer][0, -1] @ direction / scale for name in ("attn_out", "mlp_out"))
        heads = torch.einsum("hk,hkd,d->h", cache["z", layer][0, -1], model.W_O[layer], direction) / scale
        layers.append({"attn": attn.item(), "mlp": mlp.item(), "heads": heads})
    return (logits[0, -1, expected] - logits[0, -1, actual]).item(), layers


def test_a_prediction_debugged_by_hand(model):
    difference, layers = debug_prediction(model, PROMPT, " Berlin", " Paris")
    ours = analysis.debug_prediction(model, PROMPT, " Berlin", " Paris", heads=True)
    assert ours.difference == pytest.approx(difference, abs=1e-3)
    frame = ours.to_pandas()
    torch.testing.assert_close(
        torch.tensor(frame[["attention", "mlp"]].values, dtype=torch.float32),
        torch.tensor([[layer["attn"], layer["mlp"]] for layer in layers]),
        rtol=0,
        atol=1e-3,
    )
    heads = torch.stack([layer["heads"] for layer in layers])
    torch.testing.assert_close(ours.heads.by_head(), heads, rtol=0, atol=1e-3)
    for column, token in (("expected", " Berlin"), ("actual", " Paris")):
        by_hand = logit_lens(model, PROMPT, model.to_single_token(token))
        assert [rank for rank, _ in by_hand] == frame[f"rank_{column}"].tolist()
        assert [p for _, p in by_hand] == pytest.approx(frame[f"p_{column}"].tolist(), abs=1e-5)


def test_the_cached_decomposition_and_ours_are_one(model):
    """TransformerLens's way through ActivationCache: stack, apply the norm, project."""
    _, cache = model.run_with_cache(PROMPT)
    stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
    right, wrong = " Berlin", " Paris"
    theirs = cache.logit_attrs(stack, right, wrong, pos_slice=-1)[:, 0]
    ours = analysis.direct_logit_attribution(model, PROMPT, right, wrong)
    assert ours.labels[: len(labels)] == labels
    torch.testing.assert_close(ours.values[: len(labels)], theirs, rtol=0, atol=1e-4)
    heads = cache.logit_attrs(cache.stack_head_results(pos_slice=-1), right, wrong, pos_slice=-1)[:, 0]
    ours = analysis.direct_logit_attribution(model, PROMPT, right, wrong, unit="head")
    torch.testing.assert_close(ours.by_head().flatten(), heads, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", introspect.head_detector.HEAD_NAMES)
def test_detect_head_on_a_text(model, name):
    text = "Mr Dursley met Mr Dursley, and Mr Dursley laughed."
    scores = introspect.head_detector.detect_head(model, text, name, exclude_bos=True)
    tokens = model.to_tokens(text)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    D = getattr(introspect.head_detector, f"get_{name}_detection_pattern")(tokens)
    for layer in range(0, model.cfg.n_layers, 7):
        A = cache["pattern", layer].clone()
        A[:, :, 0] = 0
        torch.testing.assert_close(scores[layer], (A * D).sum((1, 2)) / A.sum((1, 2)), rtol=0, atol=1e-5)
