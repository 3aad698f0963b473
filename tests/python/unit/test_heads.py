"""Scores of heads against their formulas, on patterns of a plain pass and on heads that are built to do one thing."""

import itertools
import json

import pytest
import torch
from tiny import write_tiny_transformers
from typer.testing import CliRunner

import introspect
from introspect import analysis, head_detector
from introspect.cli.app import app

FAMILIES = ["qwen2", "llama", "mistral", "gemma2", "gpt2", "gpt_neox"]  # GQA, windows, post norms, LayerNorm, parallel


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", request.param)
    return introspect.load_model(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "m", "qwen2")
    return introspect.HookedTransformer.from_pretrained_no_processing(str(folder))


def tokens(*shape, seed=0):
    return torch.randint(3, 23, shape, generator=torch.Generator().manual_seed(seed))  # of few, so that some come twice


# Attention


def by_loops(model, rows):
    """The scores as they are defined, position by position, from the patterns of plain passes."""
    cfg = model.native.cfg
    sums, counts = {}, {}
    for ids in rows:
        _, cache = model.run_with_cache(torch.tensor([ids]))
        A = torch.stack([cache["pattern", layer][0] for layer in range(cfg.n_layers)])  # [layers, heads, pos, pos]
        local = [bool(cfg.attn_types) and cfg.attn_types[layer] == "local" for layer in range(cfg.n_layers)]

        def add(name, value):
            sums[name], counts[name] = sums.get(name, 0) + value, counts.get(name, 0) + 1

        for i in range(len(ids)):
            same = [j for j in range(i) if ids[j] == ids[i]]
            if same:
                add("duplicate_token", A[:, :, i, same].sum(-1))
            if after := [j + 1 for j in same if j + 1 < i]:
                add("induction", A[:, :, i, after].sum(-1))
            if i == 0:
                continue
            add("previous_token", A[:, :, i, i - 1])
            add("first_token", A[:, :, i, 0])
            add("diagonal", A[:, :, i, i])
            keys = torch.tensor([min(i + 1, cfg.window_size) if one else i + 1 for one in local]).double()
            add("entropy", torch.special.entr(A[:, :, i]).sum(-1) / keys.log()[:, None])
    return {name: sums[name] / counts[name] for name in sums}


def test_scores_are_the_means_of_their_definitions(model):
    texts = [tokens(14).tolist(), tokens(9, seed=1).tolist(), tokens(14, seed=2).tolist()]
    table = analysis.classify_heads(model, texts, copying=False, progress=False)
    for name, expected in by_loops(model, texts).items():
        torch.testing.assert_close(table.scores[name], expected.double(), rtol=0, atol=1e-12, msg=name)


def test_what_a_head_adds_to_the_repeated_token_is_the_direct_attribution(model):
    ids = [1, *tokens(8).unique().tolist()]
    ids = [*ids, *ids[1:]]
    table = analysis.classify_heads(model, [ids], copying=False, progress=False)
    n, vocabulary = len(ids), model.cfg.d_vocab
    half, expected = (n - 1) // 2, 0.0
    places = range(1 + half, n)
    for i in places:
        targets = [ids[i - half + 1]] if i - half + 1 < i else []
        every = analysis.direct_logit_attribution(model, ids, list(range(vocabulary)), unit="head", position=i)
        heads = every.by_head()
        expected = expected + heads[..., targets].sum(-1) - heads.mean(-1)
    torch.testing.assert_close(table.scores["induction_logit"], (expected / len(places)).double(), rtol=0, atol=1e-6)


def test_attention_to_a_given_pattern_counts_its_rows(model):
    ids = tokens(1, 11)
    D = torch.zeros(11, 11)
    D[4, 1], D[9, 3], D[9, 9] = 1.0, 1.0, 0.5
    table = analysis.classify_heads(model, ids, patterns={"mine": D}, copying=False, progress=False)
    _, cache = model.run_with_cache(ids)
    A = torch.stack([cache["pattern", layer][0] for layer in range(model.cfg.n_layers)])
    expected = (A[..., 4, 1] + A[..., 9, 3] + 0.5 * A[..., 9, 9]) / 2
    torch.testing.assert_close(table.scores["mine"], expected.double(), rtol=0, atol=1e-12)
    assert table.n_positions["mine"] == 2


def test_scores_that_no_position_counts_for_are_missing(lens):
    table = analysis.classify_heads(lens, [5, 6, 7, 8], copying=False)
    assert table.scores["induction"].isnan().all() and table.scores["duplicate_token"].isnan().all()
    assert table.n_positions["induction"] == 0 and not table.scores["entropy"].isnan().any()


# detect_head


def similarity(A, D, exclude_bos, exclude_current_token, measure):
    """TransformerLens's head_detector, written out."""
    keep = torch.ones_like(A)
    if exclude_bos:
        keep[:, 0] = 0
    if exclude_current_token:
        keep.fill_diagonal_(0)
    if measure == "mul":
        return float((A * keep * D).sum() / (A * keep).sum())
    return 1 - round(float(((A - D).abs() * keep).sum() / len(A)), 3)


@pytest.mark.parametrize("name", head_detector.HEAD_NAMES)
@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("excluded", [(False, False), (True, False), (False, True), (True, True)])
def test_detect_head_is_the_similarity_of_every_pattern(lens, name, measure, excluded):
    ids = tokens(12)
    _, cache = lens.run_with_cache(ids[None], remove_batch_dim=True)
    before = {key: value.clone() for key, value in cache.items()}
    same = (ids[:, None] == ids).float().tril(-1)
    D = {
        "previous_token_head": torch.eye(12).roll(-1, 1).tril(),
        "duplicate_token_head": same,
        "induction_head": torch.cat([torch.zeros(12, 1), same[:, :-1]], 1),
    }[name]
    heads = range(lens.cfg.n_heads)
    patterns = [cache["pattern", layer] for layer in range(lens.cfg.n_layers)]
    expected = torch.tensor([[similarity(A[head], D, *excluded, measure) for head in heads] for A in patterns])
    how = {"exclude_bos": excluded[0], "exclude_current_token": excluded[1], "error_measure": measure}
    for given in (None, cache):
        for pattern in (name, D):
            found = analysis.detect_head(lens, ids, pattern, cache=given, **how)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 if measure == "abs" else 1e-6)
    assert all(torch.equal(cache[key], value) for key, value in before.items())  # masking wrote nothing into it
    if measure == "abs":  # a step of rounding at most
        assert ((found - expected).abs() < 1e-6).float().mean() > 0.9


def test_detect_head_averages_texts_and_keeps_its_options(lens):
    texts = [tokens(12), tokens(12, seed=1)]
    how = {"exclude_bos": True, "error_measure": "abs", "heads": [(1, 2), (0, 1)]}
    both = analysis.detect_head(lens, torch.stack(texts), "previous_token_head", **how)
    each = [analysis.detect_head(lens, one, "previous_token_head", **how) for one in texts]
    torch.testing.assert_close(both, torch.stack(each).mean(0))
    assert set(map(tuple, (both != -1).nonzero().tolist())) == {(1, 2), (0, 1)}
    same = analysis.detect_head(lens, torch.stack(texts), "previous_token_head", **{**how, "heads": {1: [2], 0: [1]}})
    assert torch.equal(both, same)


def test_detect_head_sees_what_is_hooked_in(lens):
    ids = tokens(12)
    uniform = torch.ones(12, 12).tril() / torch.arange(1.0, 13)[:, None]
    with lens.hooks([("blocks.1.attn.hook_pattern", lambda x, hook: uniform.expand_as(x).clone())]):
        found = analysis.detect_head(lens, ids, "previous_token_head")
    expected = similarity(uniform, torch.eye(12).roll(-1, 1).tril(), False, False, "mul")
    torch.testing.assert_close(found[1], torch.full((lens.cfg.n_heads,), expected))
    torch.testing.assert_close(found[0], analysis.detect_head(lens, ids, "previous_token_head")[0])


def test_wrong_arguments_are_named(lens):
    ids = tokens(12)
    with pytest.raises(ValueError, match="'mul' or 'abs', got 'max'"):
        analysis.detect_head(lens, ids, "induction_head", error_measure="max")
    with pytest.raises(ValueError, match=r"one of .*induction_head.*got 'sink'"):
        analysis.detect_head(lens, ids, "sink")
    with pytest.raises(IndexError, match=r"layers 0 to 2 .*got \(7, 0\)"):
        analysis.detect_head(lens, ids, "induction_head", heads=[(7, 0)])
    with pytest.raises(introspect.ShapeError, match=r"must be \[12, 12\]"):
        analysis.detect_head(lens, ids, torch.eye(11))
    with pytest.raises(ValueError, match="zero above the diagonal"):
        analysis.detect_head(lens, ids, torch.ones(12, 12))
    with pytest.raises(introspect.ShapeError, match="at least two tokens, got 1"):
        analysis.detect_head(lens, ids[:1], "induction_head")
    with pytest.raises(ValueError, match="a cache holds one text, got 2"):
        analysis.detect_head(lens, tokens(2, 12), "induction_head", cache={})
    with pytest.warns(UserWarning, match="zeros and ones"):
        analysis.detect_head(lens, ids, torch.eye(12) / 2)
    with pytest.raises(IndexError, match="tokens must be 0 to 100"):
        analysis.classify_heads(lens, [5, 1000])
    with pytest.raises(ValueError, match="threshold must be in"):
        analysis.classify_heads(lens, threshold=0)
    with pytest.raises(ValueError, match=r"n_tokens must be 2 to 32"):
        analysis.classify_heads(lens, n_tokens=50)
    with lens.hooks([("hook_embed", lambda x, hook: x)]), pytest.raises(introspect.ConfigError, match="hooked"):
        analysis.classify_heads(lens)


def test_attention_that_is_not_finite_is_an_error(lens):
    weight = dict(lens.native.named_weights())["blocks.1.attn.W_QKV"]
    native = lens.native.with_weights({"blocks.1.attn.W_QKV": torch.full_like(weight, torch.nan)})
    with pytest.raises(introspect.Error, match="not finite"):
        analysis.classify_heads(introspect.Model(native), tokens(1, 12))


def test_transformer_lens_names_are_there():
    import introspect as transformer_lens

    assert transformer_lens.head_detector.detect_head is analysis.detect_head
    ids = torch.tensor([[4, 5, 4, 5]])
    induction, duplicate = torch.zeros(4, 4), torch.zeros(4, 4)
    induction[2, 1] = induction[3, 2] = duplicate[2, 0] = duplicate[3, 1] = 1
    assert torch.equal(head_detector.get_induction_head_detection_pattern(ids), induction)
    assert torch.equal(head_detector.get_duplicate_token_head_detection_pattern(ids), duplicate)


# Copying


@pytest.mark.parametrize("name", [*FAMILIES, "qwen2 windows", "gemma3", "llama linear rope"])
def test_eigenvalue_scores_are_those_of_the_whole_matrices(name, tmp_path):
    folder = write_tiny_transformers(tmp_path / "m", name)
    model = introspect.HookedTransformer.from_pretrained_no_processing(str(folder), dtype=torch.float64)
    cfg, native = model.cfg, model.native

    def through(norm, x):  # the norm without its division: centring and weight
        centred = x - x.mean(-1, keepdim=True) if cfg.normalization_type.startswith("LN") else x
        return centred * native.weight(f"{norm}.w").double()

    W_U, W_E = native.weight("unembed.W_U"), native.weight("embed.W_E")
    post = cfg.use_normalization_before_and_after
    for circuit in ("head", "full"):
        scores = introspect._C.ov_copying_scores(native, circuit)
        for layer in range(cfg.n_layers):
            block = f"blocks.{layer}"
            W_V, W_O = (native.weight(f"{block}.attn.{w}") for w in ("W_V", "W_O"))
            for head in range(cfg.n_heads):
                written = through(f"{block}.ln1_post", W_O[head]) if post else W_O[head]
                OV = through(f"{block}.ln1", torch.eye(cfg.d_model, dtype=torch.float64)) @ W_V[head] @ written
                if circuit == "full":
                    OV = W_E @ OV @ through("ln_final", torch.eye(cfg.d_model, dtype=torch.float64)) @ W_U
                eigenvalues = torch.linalg.eigvals(OV)
                expected = float(eigenvalues.sum().real / eigenvalues.abs().sum())
                assert scores[layer, head].item() == pytest.approx(expected, abs=1e-6), (circuit, layer, head)


def test_folded_weights_have_the_same_eigenvalues(tmp_path):
    folder = str(write_tiny_transformers(tmp_path / "m", "gpt2"))
    plain = introspect.HookedTransformer.from_pretrained_no_processing(folder, dtype=torch.float64)
    processing = {"fold_ln": True, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": True}
    folded = introspect.HookedTransformer.from_pretrained(folder, dtype=torch.float64, **processing)
    assert not torch.allclose(plain.W_V, folded.W_V) and not torch.allclose(plain.W_U, folded.W_U)
    for circuit in ("head", "full"):
        ours, theirs = (introspect._C.ov_copying_scores(m.native, circuit) for m in (plain, folded))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        assert ours.abs().max() > 0.05


def test_copy_scores_are_the_ranks_in_the_whole_vocabulary(model):
    ids = tokens(2, 9)
    lens = introspect.HookedTransformer(model)
    cfg, native = lens.cfg, lens.native
    _, cache = lens.run_with_cache(ids)
    distinct, resid = [], []
    for row in range(2):
        for i in range(1, 9):
            if ids[row, i] not in distinct:
                distinct.append(int(ids[row, i]))
                resid.append(cache["resid_post", 0][row, i])
    x = torch.stack(resid)
    got = introspect._C.copy_scores(native, [ids], top_k=5)
    W_U, b_U = native.weight("unembed.W_U"), native.weight("unembed.b_U")
    for layer in range(cfg.n_layers):
        block = lens.blocks[layer]
        v = torch.einsum("nd,hdk->nhk", block.ln1(x), block.attn.W_V) + block.attn.b_V
        o = torch.einsum("nhk,hkd->nhd", v, block.attn.W_O)
        if cfg.use_normalization_before_and_after:
            o = o / (o.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt() * native.weight(f"blocks.{layer}.ln1_post.w")
        for sign, shares in ((1, got[0]), (-1, got[1])):
            logits = lens.ln_final(sign * o) @ W_U + b_U  # [tokens, heads, vocabulary]
            own = logits[torch.arange(len(distinct)), :, distinct]
            top = logits.topk(5).indices
            expected = (top == torch.tensor(distinct)[:, None, None]).any(-1).double().mean(0)
            torch.testing.assert_close(shares[layer], expected)
            if sign == 1:
                torch.testing.assert_close(got[2][layer], (own - logits.mean(-1)).mean(0), rtol=0, atol=1e-5)


# A model that is built for it


def circuit_of_two_heads(n_vocab=20, n_ctx=64, c=100.0):
    """Slots tok, pos, prev and out; L0H0 copies the token before, L1H0 attends to what came after the current token."""
    d = 2 * n_vocab + n_vocab + n_ctx
    cfg = introspect.HookedTransformerConfig(
        n_layers=2, d_model=d, n_heads=1, n_ctx=n_ctx, d_head=n_ctx, d_mlp=1, d_vocab=n_vocab, act_fn="gelu",
        normalization_type="RMS", positional_embedding_type="standard", dtype=torch.float64,
    )  # fmt: skip
    model = introspect.HookedTransformer(cfg)
    state = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    for name, weight in state.items():
        if name.endswith(".w"):
            weight.fill_(1.0)
    ends = [0, n_vocab, n_vocab + n_ctx, 2 * n_vocab + n_ctx, d]
    tok, pos, prev, out = (slice(*pair) for pair in itertools.pairwise(ends))
    one = torch.eye(n_vocab, dtype=torch.float64)
    here = torch.eye(n_ctx, dtype=torch.float64)
    state["embed.W_E"][:, tok] = one
    state["pos_embed.W_pos"][:, pos] = here
    scale = cfg.d_head**0.5 * c  # scores are divided by the root of d_head, and norms divide by a constant
    state["blocks.0.attn.W_Q"][0, pos] = here.roll(-1, 1) * scale  # position i asks for i - 1
    state["blocks.0.attn.W_K"][0, pos] = here
    state["blocks.0.attn.W_V"][0, tok, :n_vocab] = one
    state["blocks.0.attn.W_O"][0, :n_vocab, prev] = one
    state["blocks.1.attn.W_Q"][0, tok, :n_vocab] = one * scale
    state["blocks.1.attn.W_K"][0, prev, :n_vocab] = one
    state["blocks.1.attn.W_V"][0, tok, :n_vocab] = one
    state["blocks.1.attn.W_O"][0, :n_vocab, out] = one
    state["unembed.W_U"][out] = one
    model.load_state_dict(state)
    return model


def test_an_analytic_induction_head_is_found():
    model = circuit_of_two_heads()
    half = list(range(1, 16))
    ids = [0, *half, *half]
    T = len(ids)
    previous = analysis.detect_head(model, torch.tensor(ids), "previous_token_head")
    assert previous[0, 0].item() == pytest.approx((T - 1) / T, abs=1e-6)  # a perfect one: row 0 has nobody before it
    table = analysis.classify_heads(model, [ids])
    assert table.types == [["previous_token"], ["induction"]]
    assert table.scores["previous_token"][0, 0].item() == pytest.approx(1, abs=1e-9)
    assert table.scores["induction"][1, 0].item() == pytest.approx(1, abs=1e-9)
    assert table.scores["duplicate_token"][1, 0].item() == pytest.approx(0, abs=1e-9)
    assert table.scores["induction_logit"][1, 0] > 1 > 1e-9 > table.scores["induction_logit"][0, 0].abs()
    assert table.scores["ov_copying"][1, 0].item() == pytest.approx(1)  # tok to out to the token itself
    assert table.scores["name_mover"][1, 0].item() == 1
    assert analysis.detect_head(model, torch.tensor(ids), "induction_head")[1, 0] > 0.4
    logits = model(torch.tensor([ids]))
    assert logits[0, 16:-1].argmax(-1).tolist() == half[1:]


def test_the_same_head_with_its_sign_turned_is_one_of_anti_induction():
    model = circuit_of_two_heads()
    state = model.state_dict()
    model.load_state_dict({**state, "blocks.1.attn.W_O": -state["blocks.1.attn.W_O"]})
    half = list(range(1, 16))
    table = analysis.classify_heads(model, [[0, *half, *half]])
    assert table.types[1] == ["anti_induction"] and table.heads("anti_induction") == [(1, 0)]
    assert table.scores["ov_copying"][1, 0].item() == pytest.approx(-1)
    assert table.scores["copy_suppression"][1, 0].item() == 1 and table.scores["ov_diagonal"][1, 0] < 0


# Forms of the result


def test_repeated_tokens_are_drawn_without_repetition_and_special_ones(smollm2):
    model = introspect.load_model(smollm2)
    ids = analysis.repeated_tokens(model, n_tokens=30, n_sequences=3, seed=1)
    bos = model.tokenizer.bos_token_id
    assert ids.shape == (3, 61) and (ids[:, 0] == bos).all()
    assert torch.equal(ids[:, 1:31], ids[:, 31:])
    for row in ids.tolist():
        assert len(set(row)) == 31 and not any(model.tokenizer.is_special(one) for one in row[1:])
    assert not torch.equal(ids, analysis.repeated_tokens(model, n_tokens=30, n_sequences=3, seed=2))


def test_the_table_the_dictionary_and_the_map_say_the_same(lens, tmp_path):
    table = analysis.classify_heads(lens, n_tokens=8, n_sequences=2)
    found = analysis.classify_attention_heads(lens, n_tokens=8, n_sequences=2)
    assert set(found) == {(i, h) for i in range(lens.cfg.n_layers) for h in range(lens.cfg.n_heads)}
    frame = table.to_pandas().set_index(["layer", "head"])
    for at, facts in found.items():
        assert facts["type"] == frame.loc[at, "type"] == table.types[at[0]][at[1]]
        assert {name: frame.loc[at, name] for name in facts["scores"]} == pytest.approx(facts["scores"])
    assert sum(table.counts().values()) == len(found)
    (best, value), *_ = table.largest("entropy", 3)
    assert value == frame["entropy"].max() and found[best]["scores"]["entropy"] == value
    table.plot().savefig(tmp_path / "map.png")
    with pytest.raises(ValueError, match="a score is one of"):
        table.plot(["nonsense"])


def test_the_command_prints_a_table_json_and_writes_files(tmp_path):
    folder = write_tiny_transformers(tmp_path / "m", "qwen2")
    options = ["heads", str(folder), "--tokens", "8", "--sequences", "1"]
    shown = CliRunner().invoke(
        app, [*options, "--top", "2", "-o", str(tmp_path / "h.png"), "-o", str(tmp_path / "h.csv")]
    )
    assert shown.exit_code == 0, shown.output
    assert "previous_token" in shown.stdout and "Heads by type:" in shown.stdout
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "h.csv").read_text().startswith("layer,head,type,previous_token")
    facts = json.loads(CliRunner().invoke(app, [*options, "--json", "--no-copying"]).stdout)
    assert len(facts["heads"]) == 18 and set(facts["heads"][0]) == {"layer", "head", "type", "scores"}
    assert sum(facts["types"].values()) == 18 and facts["positions"]["induction"] == 8
    wrong = CliRunner().invoke(app, [*options, "-o", "h.bmp"])
    assert wrong.exit_code == 2
