"""LEACE against its formula and its property, directions by the published steps, ablation against edited weights."""

import pytest
import torch
from tiny import ARCHITECTURES, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect import _C, analysis

POST_NORMS = ("gemma2", "gemma3", "olmo")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "m"), dtype=torch.float64)


def data(n=300, d=12, k=2, seed=0, rank=None):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=rng)
    mix = torch.randn(rank or d, d, generator=rng, dtype=torch.float64)
    x = torch.randn(n, rank or d, generator=rng, dtype=torch.float64) @ mix + 2
    x = x + torch.randn(k, rank or d, generator=rng, dtype=torch.float64)[labels] @ mix
    z = labels.double()[:, None] if k == 2 else torch.nn.functional.one_hot(labels).double()
    return x, z, labels


def by_formula(x, z, shrink=False):
    """r(x) = x - W^+ P W (x - mean), P onto the columns of W cov(x, z), W the inverse root of cov(x)."""
    n = len(x)
    dx, dz = x - x.mean(0), z - z.mean(0)
    cov = dx.T @ dx / (n - 1)
    if shrink:  # Bodnar et al. 2014, towards tr(S) / d
        s, d = dx.T @ dx / n, x.shape[1]
        target = torch.eye(d, dtype=x.dtype) * s.trace() / d
        alpha = 1 - (s.trace() ** 2 * target.norm() ** 2 / n) / (
            s.norm() ** 2 * target.norm() ** 2 - (s @ target).trace() ** 2
        )
        cov = alpha * s + (1 - alpha) * (s @ target).trace() / target.norm() ** 2 * target
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * torch.finfo(x.dtype).eps
    root = torch.where(kept, values.clamp_min(0).sqrt(), 0)
    w = vectors @ torch.diag(torch.where(kept, values.clamp_min(0).rsqrt(), 0)) @ vectors.T
    u, s, _ = torch.linalg.svd(w @ (dx.T @ dz / (n - 1)), full_matrices=False)
    u = u[:, s > 0.01]
    return x - dx @ w @ u @ u.T @ (vectors @ torch.diag(root) @ vectors.T)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("k", "rank"), [(2, None), (4, None), (2, 5)])
def test_leace_is_its_formula(k, rank, shrink):
    x, z, _ = data(k=k, rank=rank)
    eraser = analysis.LeaceEraser.fit(x, z, shrinkage=shrink)
    torch.testing.assert_close(eraser(x), by_formula(x, z, shrink), rtol=0, atol=1e-6)
    torch.testing.assert_close((x - x.mean(0)) @ eraser.P.T + x.mean(0), eraser(x))


@pytest.mark.parametrize("method", ["leace", "orth"])
@pytest.mark.parametrize("k", [2, 3])
def test_nothing_linear_is_left(k, method):
    x, z, labels = data(k=k)
    before = analysis.fit_probe(x, labels, standardise=False).weights.abs().max()
    erased = analysis.LeaceEraser.fit(x, z, method=method, svd_tol=1e-6)(x)
    after = analysis.fit_probe(erased, labels, standardise=False).weights.abs().max()
    assert before > 0.1 and after < 1e-4
    torch.testing.assert_close(erased.mean(0), x.mean(0))  # affine


def test_leace_changes_least_and_keeps_what_is_not_the_concept():
    x, z, _ = data()
    leace, orth = (analysis.LeaceEraser.fit(x, z, method=method)(x) for method in ("leace", "orth"))
    inverse = torch.linalg.inv(torch.cov(x.T))
    distance = [(((one - x) @ inverse) * (one - x)).sum() for one in (leace, orth)]
    assert distance[0] <= distance[1]


def test_the_covariance_never_grows():
    x, z, _ = data(k=4)
    eraser = analysis.LeaceEraser.fit(x, z)
    left = torch.cov(x.T) - eraser.proj_left @ eraser.proj_left.T
    torch.testing.assert_close(torch.cov(eraser(x).T), left)


def test_batches_give_what_all_rows_give():
    x, z, _ = data()
    fitter = analysis.LeaceFitter(12, 1)
    for first in range(0, 300, 70):
        fitter.update(x[first : first + 70].float(), z[first : first + 70])
    torch.testing.assert_close(fitter.eraser(x), analysis.LeaceEraser.fit(x.float(), z)(x), rtol=0, atol=1e-9)
    assert fitter.n == 300


def test_erasers_come_back_from_their_files(tmp_path):
    x, z, _ = data()
    eraser = analysis.LeaceEraser.fit(x, z)
    eraser.save(tmp_path / "e.safetensors")
    assert torch.equal(analysis.LeaceEraser.load(tmp_path / "e.safetensors")(x), eraser(x))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(introspect.IoError):
        analysis.LeaceEraser.load(tmp_path / "bad.safetensors")


def test_what_cannot_be_erased_is_said():
    x, z, _ = data()
    with pytest.raises(ValueError, match="one class"):
        analysis.LeaceEraser.fit(x, torch.ones_like(z))
    with pytest.raises(ValueError, match="finite"):
        analysis.LeaceFitter(12).update(x.index_fill(0, torch.tensor([3]), float("nan")), z)
    with pytest.raises(ValueError, match="two rows"):
        analysis.LeaceFitter(12).eraser  # noqa: B018
    with pytest.raises(introspect.ShapeError):
        analysis.LeaceFitter(11).update(x, z)
    with pytest.raises(ValueError, match="leace or orth"):
        analysis.LeaceFitter(11, method="inlp")


def test_in_a_pass_the_concept_is_gone_where_it_is_erased(chat):
    texts = [f"A {noun} said{mark}" for noun in ("ball", "tree", "king", "road", "milk") for mark in (" yes", " no")]
    labels = [i % 2 for i in range(10)]
    erasers = analysis.fit_leace(chat, texts, labels, layers=[1])
    with analysis.intervened(chat, [erasers[1].intervention(1)]):
        caches = [chat.run_with_cache(text, ["blocks.1.hook_resid_post"])[1] for text in texts]
    after = torch.stack([cache["blocks.1.hook_resid_post"][0, -1] for cache in caches])
    before = introspect.collect_activations(chat, texts, layers=[1]).values[:, 0]
    torch.testing.assert_close(after, erasers[1](before), rtol=0, atol=1e-9)
    graph = introspect.Graph()
    node = graph.segment(chat, chat.to_tokens(texts[0])[0], interventions=[erasers[1].intervention(1)])
    graph.read(node, layers=[1])
    torch.testing.assert_close(graph.run()[0][0, 0], after[0], rtol=0, atol=1e-9)


# Directions


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_that_cannot_write_a_direction_are_its_ablation_everywhere(name, tmp_path, rng):
    model = introspect.load_model(write_tiny_transformers(tmp_path / "m", name), dtype=torch.float64)
    direction = torch.randn(model.cfg.d_model, generator=rng, dtype=torch.float64)
    tokens = torch.randint(3, 100, (2, 12), generator=rng)
    if name.startswith(POST_NORMS):
        with pytest.raises(introspect.ConfigError, match="norms what attention and MLP write"):
            analysis.orthogonalised(model, direction)
        return
    plain = model(tokens)
    with analysis.ablated(model, direction):
        expected, cache = model.run_with_cache(tokens, lambda n: n.endswith(("resid_post", "resid_pre")))
    edited = analysis.orthogonalised(model, direction)
    torch.testing.assert_close(edited(tokens), expected, rtol=0, atol=1e-9)
    unit = direction / direction.norm()
    assert max(float((value @ unit).abs().max()) for value in cache.values()) < 1e-9
    assert (plain - expected).abs().max() > 1e-2
    assert edited.hash != model.hash and torch.equal(model(tokens), plain)


def test_a_direction_that_is_none_is_refused(chat):
    for direction, error in (
        (torch.zeros(32), ValueError),
        (torch.full((32,), float("nan")), ValueError),
        (torch.ones(31), introspect.ShapeError),
    ):
        for use in (analysis.orthogonalised, analysis.ablation_interventions):
            with pytest.raises(error):
                use(chat, direction)


def requests(mark, n):
    return [f"say {word}{mark}" for word in (f"w{i}" for i in range(n))]


def test_candidates_are_judged_as_published(chat):
    """Every score against plain passes with hooks: bypass, induce and KL of one candidate."""
    token = chat.tokenizer.encode(" yes", add_special_tokens=False)[0]
    found = None
    options = {
        "tokens": [token],
        "n_train": 4,
        "n_validation": 3,
        "least_induce": -99.0,
        "most_kl": 99.0,
        "layers": [1, 2],
    }
    found = analysis.refusal_direction(chat, requests(" yes", 8), requests(" no", 8), **options, progress=False)
    texts = {
        mark: [
            chat.apply_chat_template([{"role": "user", "content": one}], add_generation_prompt=True)
            for one in requests(mark, 8)[:7]
        ]
        for mark in (" yes", " no")
    }
    at = f"blocks.{found.layer}.hook_resid_pre"

    def last(text):
        return chat.run_with_cache(text, [at])[1][at][0, found.position]

    mean = {mark: torch.stack([last(text) for text in of[:4]]).mean(0) for mark, of in texts.items()}
    direction = mean[" yes"] - mean[" no"]
    torch.testing.assert_close(found.direction, direction, rtol=0, atol=1e-9)
    unit = direction / direction.norm()

    def ablate(x, hook):
        return x - (x @ unit)[..., None] * unit

    def add(x, hook):
        return x + direction

    everywhere = [
        (f"blocks.{layer}.{point}", ablate)
        for layer in range(chat.cfg.n_layers)
        for point in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
    ]

    def log_p(text, hooks):
        return chat.run_with_hooks(text, fwd_hooks=hooks)[0, -1].log_softmax(-1)

    def score(of, hooks):
        p = torch.stack([log_p(text, hooks)[token].exp() for text in of])
        return float(((p + 1e-8).log() - (1 - p + 1e-8).log()).mean())

    chosen = found.scores[found.chosen]
    assert chosen.bypass == pytest.approx(score(texts[" yes"][4:], everywhere), abs=1e-7)
    assert chosen.induce == pytest.approx(score(texts[" no"][4:], [(at, add)]), abs=1e-7)
    kls = [(log_p(t, []).exp() * (log_p(t, []) - log_p(t, everywhere))).sum() for t in texts[" no"][4:]]
    assert chosen.kl == pytest.approx(float(torch.stack(kls).mean()), abs=1e-7)
    assert found.baseline_bypass == pytest.approx(score(texts[" yes"][4:], []), abs=1e-7)
    assert chosen.bypass == min(one.bypass for one in found.scores)
    after = _C.n_tokens_after_instruction(chat)
    assert len(found.scores) == 2 * after == len(found.to_pandas())


def test_the_limits_decide_which_candidates_count(chat):
    token = chat.tokenizer.encode(" yes", add_special_tokens=False)[0]
    options = {"tokens": [token], "n_train": 3, "n_validation": 2, "layers": [1], "positions": [-1], "progress": False}
    with pytest.raises(ValueError, match="no candidate is within the limits"):
        analysis.refusal_direction(chat, requests(" yes", 5), requests(" no", 5), most_kl=-1.0, **options)
    with pytest.raises(ValueError, match="positives must be 5 texts or more, got 4"):
        analysis.refusal_direction(chat, requests(" yes", 4), requests(" no", 5), **options)
    with pytest.raises(ValueError, match="one token"):
        analysis.refusal_direction(
            chat, requests(" yes", 5), requests(" no", 5), **{**options, "tokens": ["never one token"]}
        )
