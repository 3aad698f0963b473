"""Lenses read as formulas and transformers say; patchscope; experiments and the command line read through them."""

import json

import pytest
import torch
from lenses import FAMILIES, SAME, TOKENS, pair, random_lens, their_readout, their_streams
from reference import exact_softmax
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.analysis import Lens, TunedLens, logit_lens, patchscope, trajectory
from introspect.cli.app import app


@pytest.fixture(autouse=True)
def softmax_of_transformers_in_float64():
    with exact_softmax():
        yield


@pytest.fixture(scope="module")
def llama():
    return pair("llama")


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
    with pytest.raises(ValueError, match="what must be among what was read"):
        read.plot("nonsense")


def test_bad_input_of_a_reading(llama):
    _, model = llama
    for options, error, said in (
        ({"layers": [3]}, IndexError, "layers"),
        ({"layers": []}, ValueError, "layers must hold one at least"),
        ({"positions": []}, ValueError, "positions must hold one at least"),
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
    with pytest.raises(ValueError, match="one source and one target are needed, got 2 and 1"):
        patchscope(model, torch.cat([TOKENS, TOKENS]), [1, 2])
    with pytest.raises(ValueError, match="layers must hold one at least"):
        patchscope(model, TOKENS, [1, 2], layers=[])
    with pytest.raises(ValueError, match="nothing: top_k was 0"):
        logit_lens(model, TOKENS, 0).plot()
    _, parallel = pair("gpt_neox")
    with pytest.raises(introspect.HookError, match="hook_resid_mid"):
        logit_lens(parallel, TOKENS, incl_mid=True)


def test_what_is_not_finite_is_an_error_and_no_first_rank(llama):
    _, model = llama
    broken = dict(model.native.named_weights())["blocks.1.mlp.W_out"].clone()
    broken[0, 0] = float("nan")
    bad = introspect.Model(model.native.with_weights({"blocks.1.mlp.W_out": broken}))
    for read in (lambda: logit_lens(bad, TOKENS, targets=[3]), lambda: trajectory(bad, TOKENS)):
        with pytest.raises(introspect.Error, match="reads at stream '1', position 0 is not finite"):
            read()
    below = logit_lens(bad, TOKENS, layers=[-1, 0], targets=[3])
    assert torch.equal(below.ranks["3"], logit_lens(model, TOKENS, layers=[-1, 0], targets=[3]).ranks["3"])
    with pytest.raises(introspect.Error, match="the residuals must be finite"):
        TunedLens.regression(bad, TOKENS)


# Patchscope


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


# Experiments and the command line


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


def test_an_experiment_takes_a_lens_itself(chat, tmp_path, llama):
    _, model = chat
    lens, store = random_lens(model), tmp_path / "cells.sqlite"
    lens.save(tmp_path / "lens")
    of_file = run(model, store=store, lens=tmp_path / "lens")
    n = len(introspect.Store(store))
    itself = run(model, store=store, lens=lens)
    assert itself.rows[0]["injected"]["lens"] == of_file.rows[0]["injected"]["lens"]
    assert len(introspect.Store(store)) == n and itself.settings["lens"] == of_file.settings["lens"]
    plain = run(model, lens=True)
    assert run(model, lens=Lens.logit(model)).rows[0]["injected"]["lens"] == plain.rows[0]["injected"]["lens"]
    assert itself.rows[0]["injected"]["lens"] != plain.rows[0]["injected"]["lens"]
    with pytest.raises(introspect.ShapeError):
        run(model, lens=random_lens(llama[1]))
    with pytest.raises(TypeError, match="lens must be True, a Lens or the path of one"):
        run(model, lens=3)


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
