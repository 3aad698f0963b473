"""Doses against passes over whole texts with plain hooks, the solver, and nulls of equal dose."""

import json
import math

import pytest
import torch
from looped import TURNS, chat_ids, message_positions, protocol
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect import _C
from introspect.studies.dose import STRENGTHS

LAYERS = (1, 2)
EXACT = {"abs": 1e-9, "rel": 1e-9}  # float64: the same sums in another order
QUIET = {"layers": LAYERS, "progress": False}
PASSAGES = [{"turn": 1, "text": "thought"}, {"turn": 2, "text": "{"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"), dtype=torch.float64)


@pytest.fixture(scope="module")
def vectors():
    return random_vectors()


@torch.no_grad()
def run(model, ids, positions=(), added=None):
    """Log-probabilities [T, V] and residuals {block: [T, D]} of one pass, added[block] being added at positions."""
    index = list(positions)

    def hook_of(what):
        def hook(x, hook):
            x = x.clone()
            x[:, index] += what
            return x

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", hook_of(what)) for layer, what in (added or {}).items()]
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=hooks):
        logits, cache = model.run_with_cache(torch.tensor([ids]), names_filter=names)
    return logits[0].log_softmax(-1), {layer: cache[name][0] for layer, name in enumerate(names)}


def added_of(model, vector, strength, norms=None):
    """{block: what is added}, strengths being fractions of the norms where they are given. Operands are float32."""
    out = {}
    for layer in LAYERS:
        direction = vector.directions[layer]
        factor = strength * (norms[layer] / direction.norm().item()) if norms else strength
        out[layer] = (direction * factor).double()
    return out


def kl(steered, base):
    return (steered.exp() * (steered - base)).sum(-1)


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


# ---- targets


@pytest.mark.parametrize("what", ["kl", "kl_later", "kl_read"])
@pytest.mark.parametrize("unit", ["absolute", "residual"])
def test_a_target_is_reached(model, vectors, what, unit):
    target = f"{what}=0.05"
    found = introspect.dose(model, vectors, protocol(), targets=target, strength_unit=unit, coherence=False, **QUIET)
    for row in found:
        assert row.target == target
        assert getattr(row, what) == pytest.approx(0.05, rel=1e-3)
        (again,) = introspect.dose(
            model, {row.concept: vectors[row.concept]}, protocol(), strengths=row.strength, strength_unit=unit,
            coherence=False, **QUIET,
        )  # fmt: skip
        assert getattr(again, what) == pytest.approx(getattr(row, what), **EXACT)


def test_a_solved_strength_is_the_root_of_plain_passes(model, vectors):
    """Bisection over whole passes with hooks, to the tolerance that is asked for."""
    vector, target = vectors["bread"], 0.3
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    base, _ = run(model, ids)

    def dose(strength):
        steered, _ = run(model, ids, index, added_of(model, vector, strength))
        return kl(steered, base)[index].mean().item()

    low, high = 0.0, 1.0
    assert dose(high) > target
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if dose(middle) < target else (low, middle)
    solved = introspect.solve_strength(
        model, vector, protocol(), kl=target, strength_unit="absolute", tolerance=1e-8, **QUIET
    )
    assert solved == pytest.approx(high, rel=1e-7)


@pytest.mark.parametrize("what", ["sd", "sd_overall"])
def test_a_length_is_reached_without_a_search(model, vectors, what):
    found = introspect.dose(model, vectors, protocol(), targets=f"{what}=2", coherence=False, **QUIET)
    assert [getattr(row, what) for row in found] == pytest.approx([2.0, 2.0], rel=1e-6)


def test_a_dose_that_is_not_monotone_is_said_and_solved_for_its_smallest_strength(model):
    """A direction along which the tiny model's KL rises, falls and rises again is looked for among random ones."""
    strengths = [2.0**k for k in range(-6, 5)]
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        vector = introspect.ControlVector("qwen2", {1: torch.randn(32, generator=rng)})
        rows = introspect.dose(
            model, vector, protocol(), strengths=strengths, layers=1, coherence=False, progress=False
        ).rows
        values = [row.kl_read for row in rows]
        peak = next((i for i in range(1, len(values) - 1) if values[i] > 1.2 * values[i + 1]), None)
        if peak is not None and values[peak] > 1.2 * values[peak - 1]:
            break
    else:
        pytest.fail("no such direction")
    target = 0.97 * values[peak]
    assert max(values[:peak]) < target
    with pytest.warns(UserWarning, match="more strength does not give more kl_read throughout"):
        solved = introspect.solve_strength(
            model, vector, protocol(), target=f"kl_read={target!r}", layers=1, progress=False
        )
    assert strengths[peak - 1] < solved <= strengths[peak] * 1.001


def test_strengths_may_be_doses(model, vectors):
    given = protocol(relative_strength=0.5)
    ranges = [(1, 1), (1, 2)]
    result = introspect.run_experiment(
        model, given, vectors=vectors, strengths=["kl=0.02", "kl=0.2"], layers=ranges, nulls=1, questions=[],
        progress=False,
    )  # fmt: skip
    assert result.settings["strength_unit"] == "residual"
    doses = result.settings["dose"]
    assert [(one["concept"], one["target"]) for one in doses] == [
        (concept, target) for target in ("kl=0.02", "kl=0.2") for concept in vectors for _ in ranges
    ]
    table = result.to_pandas()
    shown = table[table.kind == "introspection"]
    assert len(shown) == 8
    assert len(table) == 16
    for row in shown.itertuples():
        assert row.dose_kl == pytest.approx(float(row.dose_target.partition("=")[2]), rel=1e-3)
        solved = introspect.solve_strength(
            model, vectors[row.concept], given, target=row.dose_target, layers=(row.first_layer, row.last_layer),
            progress=False,
        )  # fmt: skip
        assert row.strength == pytest.approx(0.5 * solved, rel=1e-9)
        plain = introspect.run_experiment(
            model, given, vectors={row.concept: vectors[row.concept]}, strengths=solved, strength_unit="residual",
            layers=(row.first_layer, row.last_layer), nulls=0, questions=[], progress=False,
        ).rows[0]  # fmt: skip
        assert row.log_odds == pytest.approx(plain["injected"]["log_odds"], abs=1e-9)
        assert "dose_kl" not in plain
    again = introspect.Result.from_json(result.to_json())
    assert again.to_pandas().equals(table)
    assert again.merged(result).settings["dose"] == result.settings["dose"]


def test_the_default_strength_shows_its_dose(model, vectors):
    result = introspect.run_experiment(model, protocol(), vectors=vectors, layers=LAYERS, nulls=0, progress=False)
    (row, _) = introspect.dose(model, vectors, protocol(), strengths=0.1, coherence=False, **QUIET)
    assert result.rows[0]["dose_kl"] == pytest.approx(row.kl, **EXACT)
    assert result.dose_kl(result.groups[0]) == result.rows[0]["dose_kl"]
    assert "KL" in result.summary()
    told = introspect.run_experiment(
        model, protocol(), vectors=vectors, layers=LAYERS, nulls=0, dose=False, progress=False
    )
    assert "dose" not in told.settings


# ---- nulls of equal dose


@pytest.mark.parametrize("what", ["kl", "kl_later"])
def test_nulls_of_equal_dose_have_the_vectors_own_in_plain_passes(model, vectors, what):
    nulls = introspect.equal_dose(model, vectors, protocol(), strength=0.3, nulls=3, seed=4, what=what, **QUIET)
    ids, index = chat_ids(model, TURNS), message_positions(model, TURNS, [1, 2])
    counted = index if what == "kl" else list(range(index[-1] + 1, len(ids)))
    norms = introspect.residual_norms(model, TURNS, positions=index)
    base, _ = run(model, ids)

    def dose(added):
        steered, _ = run(model, ids, index, added)
        return kl(steered, base)[counted].mean().item()

    assert list(nulls) == list(vectors)
    for concept, listed in nulls.items():
        own = dose(added_of(model, vectors[concept], 0.3, norms))
        assert len(listed) == 3
        for null in listed:
            assert null.layers == list(LAYERS)
            assert dose({layer: direction.double() for layer, direction in null.directions.items()}) == pytest.approx(
                own, rel=1.1e-3
            )


def test_nulls_of_equal_dose_are_the_runs_own_rotations(model, vectors):
    """What differs from equal norm is the strength alone: the rotations are those that run_experiment makes."""
    options = {"vectors": {"cat": vectors["cat"]}, "layers": LAYERS, "questions": [], "seed": 4, "progress": False}
    index = message_positions(model, TURNS, [1, 2])
    norms = introspect.residual_norms(model, TURNS, positions=index)
    nulls = introspect.equal_dose(model, {"cat": vectors["cat"]}, protocol(), strength=0.3, nulls=2, seed=4, **QUIET)
    for number, null in enumerate(nulls["cat"]):
        strength = null.norms[1] / norms[1]
        by_run = introspect.run_experiment(
            model, protocol(), strengths=strength, strength_unit="residual", nulls=2, **options
        )
        given = introspect.run_experiment(
            model, protocol(), strengths=1.0, null_vectors={"cat": nulls["cat"]}, nulls=0, **options
        )
        (one,) = [row for row in by_run.rows if row["null_index"] == number]
        (other,) = [row for row in given.rows if row["null_index"] == number]
        assert other["injected"]["log_odds"] == pytest.approx(one["injected"]["log_odds"], abs=1e-6)  # float32 lengths


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


def test_steer_takes_doses(model, vectors):
    tokens = model.to_tokens("A cat sat there.")
    for unit in ("absolute", "residual"):
        solved = introspect.solve_strength(
            model, vectors["cat"], kl=0.1, layers=LAYERS, strength_unit=unit, progress=False
        )
        with model.steer(vectors["cat"], strength=solved, unit=unit, layers=LAYERS):
            expected = model(tokens)
        with model.steer(vectors["cat"], strength="kl=0.1", unit=unit, layers=LAYERS):
            assert torch.equal(model(tokens), expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl=-1", "kl must be a number above 0, got '-1'"),
        ("kl=0", "kl must be a number above 0, got '0'"),
        ("kl=abc", "kl must be a number above 0, got 'abc'"),
        ("kl=nan", "kl must be a number above 0, got 'nan'"),
        ("kl=inf", "kl must be a number above 0, got 'inf'"),
        ("kl=", "kl must be a number above 0, got ''"),
        ("kl=0.5x", "kl must be a number above 0, got '0.5x'"),
        ("nats=1", "a name of kl, kl_later, kl_read, sd, sd_overall, got 'nats=1'"),
        ("0.5", "got '0.5'"),
        ("", "got ''"),
    ],
)
def test_doses_are_refused_that_are_none(model, vectors, text, words):
    with pytest.raises(ValueError, match=words):
        introspect.run_experiment(model, protocol(), vectors=vectors, strengths=text, **QUIET)
    with pytest.raises(ValueError, match=words):
        introspect.solve_strength(model, vectors["cat"], protocol(), target=text, **QUIET)
    with pytest.raises(ValueError, match=words), model.steer(vectors["cat"], strength=text):
        pass


def test_a_dose_out_of_reach_says_what_is_reached(model, vectors):
    with pytest.raises(ValueError, match=r"'cat' in blocks 1 to 2 a dose of kl=1000: .* to [\d.]+ \(at"):
        introspect.dose(model, {"cat": vectors["cat"]}, protocol(), targets=1000.0, **QUIET)
    zeros = introspect.ControlVector("qwen2", {1: torch.zeros(32), 2: torch.zeros(32)})
    with pytest.raises(ValueError, match="no strength gives"):
        introspect.solve_strength(model, zeros, protocol(), kl=0.1, **QUIET)
    with pytest.raises(ValueError, match="no strength gives"):
        introspect.solve_strength(model, zeros, protocol(), target="sd=1", **QUIET)
    with pytest.raises(ValueError, match="has nothing to equal"):
        introspect.equal_dose(model, {"none": zeros}, protocol(), nulls=1, **QUIET)


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


def test_doses_are_of_protocols_that_add_vectors_and_of_one_part(model, vectors):
    run_it = {"vectors": vectors, "strengths": "kl=0.1", **QUIET}
    with pytest.raises(introspect.ConfigError, match="injects by scale, which has no dose"):
        introspect.run_experiment(model, protocol(inject={"by": "scale"}), **run_it)
    with pytest.raises(ValueError, match="one part"):
        introspect.run_experiment(model, protocol(), parts=[(0.0, 0.5), (0.5, 1.0)], **run_it)
    with pytest.raises(ValueError, match="numbers or doses, not some of each"):
        introspect.run_experiment(model, protocol(), **{**run_it, "strengths": [0.1, "kl=0.1"]})


def test_a_plan_solves_nothing(model, vectors):
    plans = [
        introspect.run_experiment(
            model, protocol(), vectors=vectors, strengths=strengths, strength_unit="residual", plan=True, **QUIET
        )
        for strengths in (["kl=0.1", "coherent"], [0.1, 0.2])
    ]
    assert plans[0].readings == plans[1].readings


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
