"""Doses, and how steered text reads, against passes over whole texts with plain hooks."""

import json
import math

import pytest
import torch
from looped import TURNS, chat_ids, message_positions, protocol
from plain_doses import EXACT, LAYERS, QUIET, added_of, kl, run

import introspect
from introspect import _C
from introspect.studies import variants
from introspect.studies.dose import STRENGTHS

PASSAGES = [{"turn": 1, "text": "thought"}, {"turn": 2, "text": "{"}]


def passage_positions(model):
    """Positions of PASSAGES; the vocabulary is bytes but for a few words, none of which stand there."""
    ids, found = chat_ids(model, TURNS), []
    text = model.apply_chat_template(TURNS, continue_final_message=True)
    at = 0
    for passage in PASSAGES:
        at = text.index(passage["text"], at)
        before = len(model.tokenizer.encode(text[:at], add_special_tokens=False))
        at += len(passage["text"])
        after = len(model.tokenizer.encode(text[:at], add_special_tokens=False))
        assert model.tokenizer.decode(ids[before:after]) == passage["text"]
        found.append(list(range(before, after)))
    return found


def test_a_dose_is_that_of_whole_passes_with_hooks(model, vectors):
    found = introspect.dose(model, vectors, protocol(), strengths=[0.1, 0.7], coherence=False, **QUIET)
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    later = list(range(index[-1] + 1, len(ids)))
    norms = introspect.residual_norms(model, TURNS, positions=index)
    base, base_resid = run(model, ids)
    final = model.cfg.n_layers - 1
    assert [(row.concept, row.strength) for row in found] == [(c, s) for c in vectors for s in (0.1, 0.7)]
    for row in found:
        added = added_of(model, vectors[row.concept], row.strength, norms)
        steered, _ = run(model, ids, index, added)
        divergence = kl(steered, base)
        assert row.kl == pytest.approx(divergence[index].mean().item(), **EXACT)
        assert row.kl_later == pytest.approx(divergence[later].mean().item(), **EXACT)
        assert row.kl_read == pytest.approx(divergence[-1].item(), **EXACT)
        assert row.relative == pytest.approx(row.strength, rel=1e-6)  # directions are float32

        lengths = {layer: what.norm() for layer, what in added.items()}
        natural = {layer: base_resid[layer][1:] for layer in LAYERS}
        along = [
            lengths[layer] / (natural[layer] @ (added[layer] / lengths[layer])).std(correction=0) for layer in LAYERS
        ]
        overall = [lengths[layer] / natural[layer].var(0, correction=0).mean().sqrt() for layer in LAYERS]
        assert row.sd == pytest.approx(torch.stack(along).mean().item(), rel=1e-6)
        assert row.sd_overall == pytest.approx(torch.stack(overall).mean().item(), rel=1e-6)

        words = [model.tokenizer.encode(w, add_special_tokens=False)[0] for w in (row.concept, f" {row.concept}")]
        words = sorted(set(words))
        assert row.next == pytest.approx(steered[index][:, words].exp().sum(-1).mean().item(), **EXACT)
        assert row.next_base == pytest.approx(base[index][:, words].exp().sum(-1).mean().item(), **EXACT)
        assert LAYERS[1] == final  # where the lens is the output itself
        assert row.leak == pytest.approx(row.next, **EXACT)


def test_massive_activations_are_no_part_of_what_is_natural(model, vectors):
    (line,) = model.tokenizer.encode("\n", add_special_tokens=False)
    embedding = dict(model.native.named_weights())["embed.W_E"].clone()
    embedding[line] *= 1000
    massive = introspect.Model(model.native.with_weights({"embed.W_E": embedding}))
    options = {"strengths": 1.0, "strength_unit": "absolute", "coherence": False}
    (row,) = introspect.dose(massive, {"cat": vectors["cat"]}, protocol(), **options, **QUIET)
    ids = chat_ids(massive, TURNS)
    assert line in ids[1:]
    usual = [at for at, one in enumerate(ids) if at > 0 and one != line]
    _, resid = run(massive, ids)
    along, overall = [], []
    for layer, added in added_of(massive, vectors["cat"], 1.0).items():
        natural = resid[layer][usual]
        along.append(added.norm() / (natural @ (added / added.norm())).std(correction=0))
        overall.append(added.norm() / natural.var(0, correction=0).mean().sqrt())
    assert row.sd == pytest.approx(torch.stack(along).mean().item(), rel=1e-6)
    assert row.sd_overall == pytest.approx(torch.stack(overall).mean().item(), rel=1e-6)


def test_leakage_is_read_through_the_lens_of_the_ranges_last_block(model, vectors):
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, protocol(), strengths=2.0, strength_unit="absolute", layers=1, coherence=False,
        progress=False,
    )  # fmt: skip
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    _, base = run(model, ids)
    _, steered = run(model, ids, index, {1: 2.0 * vectors["cat"].directions[1].double()})
    words = sorted({model.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("cat", " cat")})
    for resid, got in ((steered, row.leak), (base, row.leak_base)):
        lens = model.native.readout(resid[1][index]).log_softmax(-1)
        assert got == pytest.approx(lens[:, words].exp().sum(-1).mean().item(), **EXACT)


def test_between_passages_tokens_are_later_ones_and_before_them_none(model, vectors):
    given = protocol(injected=PASSAGES)
    strength = 3.0
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, given, strengths=strength, strength_unit="absolute", coherence=False, **QUIET
    )
    ids, (first, second) = chat_ids(model, TURNS), passage_positions(model)
    base, _ = run(model, ids)
    steered, _ = run(model, ids, [*first, *second], added_of(model, vectors["cat"], strength))
    divergence = kl(steered, base)
    later = [*range(first[-1] + 1, second[0]), *range(second[-1] + 1, len(ids))]
    assert row.kl == pytest.approx(divergence[[*first, *second]].mean().item(), **EXACT)
    assert row.kl_later == pytest.approx(divergence[later].mean().item(), **EXACT)


def test_a_part_is_of_the_injected_tokens(model, vectors):
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, protocol(), strengths=3.0, strength_unit="absolute", part=(0.5, 1.0),
        coherence=False, **QUIET,
    )  # fmt: skip
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    half = index[math.floor(len(index) / 2) :]
    base, _ = run(model, ids)
    steered, _ = run(model, ids, half, added_of(model, vectors["cat"], 3.0))
    assert row.kl == pytest.approx(kl(steered, base)[half].mean().item(), **EXACT)


def test_paraphrases_are_later_tokens_of_their_own(model, vectors):
    given = protocol(paraphrases=["Did you notice anything at all?"])
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, given, strengths=3.0, strength_unit="absolute", coherence=False, **QUIET
    )
    other = [*TURNS[:3], {"role": "user", "content": "Did you notice anything at all?"}, TURNS[4]]
    index = message_positions(model, TURNS, [1, 2])
    later, read = [], []
    for turns in (TURNS, other):
        ids = chat_ids(model, turns)
        base, _ = run(model, ids)
        steered, _ = run(model, ids, index, added_of(model, vectors["cat"], 3.0))
        later.append(kl(steered, base)[index[-1] + 1 :])
        read.append(later[-1][-1])
    assert row.kl_later == pytest.approx(torch.cat(later).mean().item(), **EXACT)
    assert row.kl_read == pytest.approx(torch.stack(read).mean().item(), **EXACT)


def test_runs_read_the_dose_of_every_injection_that_they_make(model, vectors):
    """Of neighbouring messages, passages apart from each other, a part of them, and one passage at a time."""
    ids, whole, passages = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2]), passage_positions(model)
    base, _ = run(model, ids)
    half = whole[math.floor(len(whole) / 2) :]
    cases = [
        ({}, (0.0, 1.0), whole),
        ({"injected": PASSAGES}, (0.0, 1.0), [*passages[0], *passages[1]]),
        ({}, (0.5, 1.0), half),
    ]
    options = {"strengths": 3.0, "layers": LAYERS, "questions": [], "nulls": 1, "readouts": {"injected_kl": True}}
    for fields, part, index in cases:
        rows = introspect.run_experiment(
            model, protocol(**fields), vectors=vectors, parts=[part], progress=False, **options
        ).rows
        assert len(rows) == 4
        for row in rows:
            assert "injected_kl" not in row["base"] and row["injected"]["injected_tokens"] == len(index)
            if row["kind"] == "introspection":
                steered, _ = run(model, ids, index, added_of(model, vectors[row["concept"]], 3.0))
                assert row["injected"]["injected_kl"] == pytest.approx(kl(steered, base)[index].mean().item(), **EXACT)
    places = {"injected": PASSAGES, "answers": [" yes", " no"]}
    rows = introspect.run_experiment(model, protocol(**places), vectors=vectors, progress=False, **options).rows
    assert {row["place"] for row in rows} == {0, 1}
    for row in (row for row in rows if row["kind"] == "introspection"):
        index = passages[row["place"]]
        steered, _ = run(model, ids, index, added_of(model, vectors[row["concept"]], 3.0))
        assert row["injected"]["injected_kl"] == pytest.approx(kl(steered, base)[index].mean().item(), **EXACT)


def test_other_words_have_no_divergence_from_the_injected_ones(model, vectors):
    given = variants.input_edit(protocol())
    with pytest.raises(introspect.ConfigError, match="injected_kl compares the injected tokens"):
        introspect.run_experiment(model, given, vectors=vectors, readouts={"injected_kl": True}, progress=False)


def test_prompts_are_steered_at_every_token(model, vectors):
    texts = ["A cat sat there.", "No bread today"]
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, texts, strengths=2.0, strength_unit="absolute", coherence=False, **QUIET
    )
    divergences = []
    for text in texts:
        ids = model.to_tokens(text)[0].tolist()
        base, _ = run(model, ids)
        steered, _ = run(model, ids, range(len(ids)), added_of(model, vectors["cat"], 2.0))
        divergences.append(kl(steered, base))
    assert row.kl == pytest.approx(torch.cat(divergences).mean().item(), **EXACT)
    assert math.isnan(row.kl_later)


def test_many_in_one_graph_are_each_by_itself(model, vectors):
    ranges = [(1, 1), (1, 2), (2, 2)]
    options = {"strength_unit": "residual", "coherence": False, "nulls": 2, "progress": False}
    together = introspect.dose(model, vectors, protocol(), strengths=[0.2, 0.4], layers=ranges, **options)
    assert len(together) == 2 * 3 * 3 * 2
    for row in together:
        alone = introspect.dose(
            model, {row.concept: vectors[row.concept]}, protocol(), strengths=row.strength,
            layers=(row.first_layer, row.last_layer), **options,
        )  # fmt: skip
        (same,) = [one for one in alone if one.null_index == row.null_index]
        assert same.kl == pytest.approx(row.kl, **EXACT)
        assert same.kl_later == pytest.approx(row.kl_later, **EXACT)


# ---- coherence


@torch.no_grad()
def greedy(model, ids, n, positions_added=None):
    """n tokens after ids; positions_added(length) gives {block: added} and the positions that get it."""
    ids, new = list(ids), []
    stops = {*model.tokenizer.stop_token_ids}
    for _ in range(n):
        index, added = positions_added(len(ids)) if positions_added else ((), None)
        logits, _ = run(model, ids, index, added)
        new.append(int(logits[-1].argmax()))
        ids.append(new[-1])
        if new[-1] in stops:
            break
    return new


def repetition(ids):
    runs = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@pytest.mark.parametrize("keeps", [False, True])
def test_coherence_is_that_of_texts_drawn_token_by_token(model, vectors, keeps):
    given = protocol(steer_generation=keeps)
    (row,) = introspect.dose(
        model, {"cat": vectors["cat"]}, given, strengths=4.0, strength_unit="absolute", max_new_tokens=9, **QUIET
    )
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    added = added_of(model, vectors["cat"], 4.0)
    first = index[0]
    text = greedy(model, ids, 9, lambda n: (range(first, n) if keeps else index, added))
    plain = greedy(model, ids, 9)
    for new, perplexity, share in (
        (text, row.perplexity, row.repetition),
        (plain, row.perplexity_base, row.repetition_base),
    ):
        scored, _ = run(model, [*ids, *new])
        nats = -scored[len(ids) - 1 : -1].gather(-1, torch.tensor(new)[:, None]).mean()
        assert perplexity == pytest.approx(nats.exp().item(), rel=1e-9)
        assert share == pytest.approx(repetition(new), abs=1e-12)
    assert row.text == model.tokenizer.decode(text, skip_special_tokens=True)
    better = min(1, row.perplexity_base / row.perplexity)
    assert row.coherence == pytest.approx(better * (1 - max(0, row.repetition - row.repetition_base)))


def test_the_window_ends_before_the_first_strength_that_breaks_the_text(model, vectors):
    window = introspect.coherent_window(model, vectors["cat"], protocol(), factor=1.5, max_new_tokens=8, **QUIET)
    assert [one.strength for one in window.tried] == sorted(one.strength for one in window.tried)
    for one in window.tried:
        within = one.perplexity <= 1.5 * one.perplexity_base
        assert one.is_coherent == (within and one.repetition <= one.repetition_base + 0.15)
        assert one.is_coherent or one.strength >= window.broken
    assert all(one.is_coherent for one in window.tried if one.strength <= window.largest)
    assert window.largest < window.broken <= 1.2 * window.largest
    solved = introspect.solve_strength(
        model, vectors["cat"], protocol(), target="coherent", factor=1.5, max_new_tokens=8, **QUIET
    )
    assert solved == window.largest


# ---- what is refused


def test_a_coarse_window_is_known_to_a_factor_of_two(model, vectors):
    options = {"factor": 1.5, "max_new_tokens": 8, **QUIET}
    fine = introspect.coherent_window(model, vectors["cat"], protocol(), **options)
    coarse = introspect.coherent_window(model, vectors["cat"], protocol(), fine=False, **options)
    assert coarse.largest <= fine.largest < fine.broken <= coarse.broken
    assert coarse.broken == pytest.approx(2 * coarse.largest)
    assert {one.strength for one in coarse.tried} < {one.strength for one in fine.tried}


def test_an_empty_window_says_what_the_smallest_strength_does(model, vectors):
    with pytest.raises(introspect.Error, match=r"window of .* is empty: at the smallest strength tried, .* perplexity"):
        introspect.coherent_window(model, vectors["cat"], protocol(), factor=0.5, max_new_tokens=5, **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": 0}, introspect.ConfigError, "direction"),
        ({"layers": (1, 9)}, IndexError, "from 0 to 2"),
        ({"strengths": math.nan}, ValueError, "finite"),
        ({"strengths": []}, ValueError, "at least one strength"),
        ({"targets": [0.1, "kl=1"]}, ValueError, "not some of each"),
        ({"targets": math.nan}, ValueError, "above 0"),
        ({"strength_unit": "sd"}, ValueError, "absolute or residual"),
        ({"part": (0.5, 0.2)}, ValueError, "part"),
        ({"factor": 0.0}, ValueError, "factor"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"more_repetition": -1.0}, ValueError, "more_repetition"),
        ({"max_new_tokens": 10_000}, introspect.ShapeError, "must fit"),
        ({"protocol": protocol(inject={"by": "dropout", "rate": 0.1})}, introspect.ConfigError, "must inject vectors"),
        ({"protocol": []}, ValueError, "at least one prompt"),
        ({"protocol": [7]}, TypeError, "list of texts"),
        ({"vector": torch.ones(32)}, TypeError, "ControlVector"),
        ({"vector": {}}, ValueError, "at least one vector"),
        ({"vector": introspect.ControlVector("qwen2", {1: torch.ones(8)})}, introspect.ShapeError, "as wide"),
    ],
)
def test_arguments_are_refused_before_anything_runs(model, vectors, options, error, words):
    given = {"vector": vectors["cat"], "protocol": protocol(), "strengths": [1.0], **QUIET, **options}
    if "targets" in options:
        del given["strengths"]
    with pytest.raises(error, match=words):
        introspect.dose(model, given.pop("vector"), given.pop("protocol"), **given)


# ---- tables and pictures


def test_tables_and_curves(model, vectors):
    found = introspect.dose(model, vectors, protocol(), nulls=1, max_new_tokens=3, **QUIET)
    table = found.to_pandas()
    assert {"target", "strength", "kl", "coherence"} <= set(table.columns)
    assert len(table) == 2 * 2 * len(STRENGTHS)
    assert table[table.null_index < 0].coherence.notna().all()
    json.loads(found.to_json())
    assert found.summary().splitlines()[0].split()[:3] == ["vector", "blocks", "strength"]
    figure = found.plot()
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3


def test_the_native_defaults_are_pythons():
    assert _C.default_coherence_factor > 1
