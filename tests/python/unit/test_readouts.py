"""What an experiment reads beside the log-odds, against formulas on a naive pass over the whole text (float64)."""

import pytest
import torch
from looped import CONTROLS, TURNS, chat_ids, log_odds, looped, looped_readings, message_positions, protocol, token
from tiny_chat import random_vectors

import introspect

LAYERS, STRENGTH = (1, 2), 2.0


@pytest.fixture(scope="module")
def vectors():
    return random_vectors(LAYERS)


@pytest.fixture(scope="module")
def naive(model, vectors):
    return looped_readings(model, vectors, STRENGTH)


def run(model, vectors, given=None, **options):
    options = {"strengths": [STRENGTH], "layers": [LAYERS], "questions": [], "nulls": 0, **options}
    return introspect.run_experiment(model, given or protocol(), vectors=vectors, **options)


def close(a, b, tolerance=1e-9):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))  # lists would become float32
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_the_lens_reads_every_block_as_the_last_one_is_read(model, vectors, naive):
    given = protocol(yes_variants=[" yes", "cat"], no_variants=[" no", " bread"])
    with pytest.warns(UserWarning, match="absolutely"):
        run(model, vectors, protocol(yes_variants=["absolutely"]))
    result = run(model, vectors, given, lens=True)
    table = result.lens_to_pandas()
    assert len(table) == 2 * model.cfg.n_layers
    yes, no = [token(model, t) for t in (" yes", "cat")], [token(model, t) for t in (" no", " bread")]
    base, injected = naive
    for row in result.rows:
        for side, state in (("base", base), ("injected", injected[row["concept"]])):
            logits = model.native.readout(state.resid)
            p = logits.softmax(-1)
            lens = row[side]["lens"]
            close(lens["log_odds"], logits[:, yes[0]] - logits[:, no[0]])
            close(lens["p_yes"], p[:, yes].sum(1))
            close(lens["p_no"], p[:, no].sum(1))
            assert lens["log_odds"][-1] == pytest.approx(row[side]["log_odds"], abs=1e-9)
            sums = state.logits[yes].logsumexp(0) - state.logits[no].logsumexp(0)
            assert row[side]["set_log_odds"] == pytest.approx(float(sums), abs=1e-9)
    # Below the first steered block nothing differs at a position that is not injected.
    assert (table[table.layer == 0].log_odds == table[table.layer == 0].log_odds_base).all()


def test_the_lens_of_report_tokens(model, vectors, naive):
    result = run(model, vectors, protocol(read="content"), lens=True)
    table = result.token_lens_to_pandas()
    cat = table[(table.concept == "bread") & (table.token_concept == "cat") & table.spaced]
    logits = model.native.readout(naive[1]["bread"].resid)
    close(cat.log_prob.to_numpy(), logits.log_softmax(-1)[:, token(model, " cat")])


def test_attention_to_the_injected_tokens_is_the_sum_of_the_patterns(model, vectors, naive):
    result = run(model, vectors, attention=True)
    positions = message_positions(model, TURNS, [1, 2])
    maps = result.attention()
    assert maps.shape == (2, model.cfg.n_layers, model.cfg.n_heads)
    for i, concept in enumerate(("cat", "bread")):
        close(maps[i], naive[1][concept].patterns[..., positions].sum(-1))
        close(result.attention("base")[i], naive[0].patterns[..., positions].sum(-1))
    with pytest.raises(ValueError, match="attention=True"):
        run(model, vectors).attention()


def test_divergence_and_changed_tokens(model, vectors, naive):
    result = run(model, vectors, divergence=True, top_k=4)
    base = naive[0].logits.log_softmax(-1)
    for row in result.rows:
        injected = naive[1][row["concept"]].logits.log_softmax(-1)
        change = injected - base
        assert row["injected"]["kl"] == pytest.approx(float((injected.exp() * change).sum()), abs=1e-9)
        assert row["injected"]["entropy"] == pytest.approx(float(-(injected.exp() * injected).sum()), abs=1e-9)
        assert row["base"]["entropy"] == pytest.approx(float(-(base.exp() * base).sum()), abs=1e-9)
        assert "kl" not in row["base"]
        for direction, order in (("raised", change.argsort(descending=True)), ("lowered", change.argsort())):
            assert [one["id"] for one in row["injected"][direction]] == order[:4].tolist()
            close([one["change"] for one in row["injected"][direction]], change[order[:4]])
    table = result.changes_to_pandas()
    assert len(table) == 2 * 2 * 4
    assert {"kl", "entropy", "entropy_base"} <= set(result.to_pandas().columns)


def test_comparisons_do_not_hang_on_what_the_store_knows(model, vectors, tmp_path):
    """The unsteered reading is known, its logits are not."""
    options = {"divergence": True, "top_k": 2, "store": tmp_path / "cells.sqlite"}
    run(model, {"cat": vectors["cat"]}, **options)
    later = run(model, vectors, **options)
    fresh = run(model, vectors, divergence=True, top_k=2)
    for a, b in zip(later.rows, fresh.rows, strict=True):
        assert a["injected"]["kl"] == pytest.approx(b["injected"]["kl"], abs=1e-9)


def test_projections_are_on_unit_directions(model, vectors, naive):
    direction = introspect.ControlVector("qwen2", {0: torch.ones(32), 2: torch.arange(32.0)})
    table = run(model, vectors, directions={"ramp": direction}).projections_to_pandas()
    row = table[(table.concept == "cat") & (table.layer == 2)].iloc[0]
    unit = torch.arange(32.0).double()
    unit /= unit.norm()
    assert row.projection == pytest.approx(float(naive[1]["cat"].resid[2] @ unit), abs=1e-6)  # unit in float32
    assert row.projection_base == pytest.approx(float(naive[0].resid[2] @ unit), abs=1e-6)
    assert set(table.layer) == {0, 2}


@pytest.mark.parametrize("text", [" yes", " yes, I did"])
def test_the_probability_of_a_continuation_is_the_product_of_its_tokens(model, vectors, text):
    result = run(model, vectors, continuations=[text, " no"])
    ids, positions = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    added = {layer: STRENGTH * v for layer, v in vectors["cat"].directions.items()}
    expected, so_far = 0.0, list(ids)
    for one in model.tokenizer.encode(text, add_special_tokens=False):
        expected += float(looped(model, so_far, positions, added).logits.log_softmax(-1)[one])
        so_far.append(one)
    table = result.continuations_to_pandas()
    found = table[(table.concept == "cat") & (table.continuation == text)].log_prob.item()
    assert found == pytest.approx(expected, abs=1e-9)


def test_what_is_read_beside_changes_the_place_in_the_store(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    run(model, vectors, store=store)
    assert len(introspect.Store(store)) == 3
    run(model, vectors, store=store, lens=True)
    assert len(introspect.Store(store)) == 6
    result = run(model, vectors, store=store, lens=True)  # from the store
    assert len(result.lens_to_pandas()) == 2 * model.cfg.n_layers


def test_control_questions_are_chosen_by_the_un_steered_model(model, vectors):
    given = protocol(controls=CONTROLS)
    every = run(model, vectors, given, questions=None).to_pandas()
    base = every[every.kind == "control"].groupby("question").log_odds_base.first()
    limit = float(base.sort_values().iloc[1])  # the lowest lies below it
    result = run(model, vectors, given, questions=None, control_filter=limit)
    kept = result.to_pandas()
    assert set(kept[kept.kind == "control"].question) == set(base[base < limit].index)
    assert result.settings["control_filter"] == {"below": limit, "asked": 3, "kept": 1}
    assert set(kept[kept.kind == "introspection"].concept) == {"cat", "bread"}


def test_given_vectors_are_nulls_behind_the_rotations(model, vectors):
    rows = run(model, {"cat": vectors["cat"]}, nulls=2, null_vectors={"cat": [vectors["bread"]]}).rows
    assert [row["null_index"] for row in rows] == [-1, 0, 1, 2]
    assert rows[3]["kind"] == "random"
    expected = run(model, {"bread": vectors["bread"]}).rows[0]["injected"]["log_odds"]
    assert rows[3]["injected"]["log_odds"] == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="dog"):
        run(model, vectors, null_vectors={"dog": [vectors["cat"]]})


def test_token_sets_entropy_and_divergence_by_their_formulas():
    rng = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 4, 50, generator=rng, dtype=torch.float64) * 3
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    close(introspect._C.set_log_odds(a, yes=[1, 7], no=[2]), (p[:, [1, 7]].exp().sum(1) / p[:, 2].exp()).log(), 1e-12)
    close(introspect._C.entropy(a), -(p.exp() * p).sum(-1), 1e-12)
    close(introspect._C.kl_divergence(a, b), (p.exp() * (p - q)).sum(-1), 1e-12)
    changes, ids = introspect._C.most_changed(a[0], b[0], k=3, raised=False)
    assert ids.tolist() == (p - q)[0].argsort()[:3].tolist()
    close(changes, (p - q)[0].sort().values[:3], 1e-12)
    with pytest.raises(ValueError, match="token"):
        introspect._C.set_log_odds(a, yes=[], no=[2])
    with pytest.raises(IndexError, match="49"):
        introspect._C.set_log_odds(a, yes=[50], no=[2])
    with pytest.raises(introspect.ShapeError, match="50"):
        introspect._C.kl_divergence(a, b[:, :9])


def test_log_odds_equal_the_naive_run(model, vectors, naive):
    for row in run(model, vectors).rows:
        assert row["base"]["log_odds"] == pytest.approx(log_odds(model, naive[0].logits), abs=1e-9)
        assert row["injected"]["log_odds"] == pytest.approx(log_odds(model, naive[1][row["concept"]].logits), abs=1e-9)
