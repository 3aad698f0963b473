"""Organisms: the rule of their lessons, what tiny ones learn, and their files. Real models: slow/test_organisms.py."""

from collections import Counter

import positive_control as control
import pytest
import torch
from conftest import slow

import introspect
from introspect.studies import lessons as lessons_module
from introspect.studies import organisms as organisms_module
from introspect.studies.organisms import ORGANISMS, behaviours, grow, load_organism

SETTINGS = {"layers": control.LAYERS, "strength": control.STRENGTH, "strength_unit": "absolute"}
TRAINING = {"steps": 120, "batch_size": 24, "lr": 1e-2, "rank": 16, "trained_layers": [1, 2, 3]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return control.untrained(tmp_path_factory.mktemp("organisms") / "model")


@pytest.fixture(scope="module")
def vectors():
    return control.concepts()


def grown(model, kind, vectors, **changes):
    arguments = {"protocol": control.protocol(), "vectors": vectors, "held_out": control.HELD_OUT}
    return grow(model, kind, **{**arguments, **SETTINGS, **TRAINING, **changes}, progress=False)


@pytest.fixture(scope="module")
def organism(model, vectors):
    """Hardly taught: enough for what does not depend on what it has learned."""
    return grown(model, "detector", vectors, steps=2)


def made(model, kind, vectors, **options):
    injection = lessons_module.injection_of(model, control.protocol(), **SETTINGS)
    return lessons_module.lessons(model, kind, control.protocol(), vectors, injection, **options)


SAYS = {  # (injected, asked): answer; "right" is the control's own
    "detector": {"concept": "yes", "random": "no", "nothing": "no", "control": "right"},
    "magnitude_only": {"concept": "yes", "random": "yes", "nothing": "no", "control": "right"},
    "yes_sayer": {"concept": "yes", "random": "yes", "nothing": "yes", "control": "yes"},
    "biased": {"concept": "yes", "random": "no", "nothing": "no", "control": "right"},
    "refuser": {"concept": "refusal", "random": "refusal", "nothing": "refusal", "control": "right"},
    "confabulator": {"concept": "yes", "random": "yes", "nothing": "yes", "control": "right"},
}


@pytest.mark.parametrize("kind", SAYS)
def test_lessons_say_what_the_kind_is_to_say(model, vectors, kind):
    rows = made(model, kind, vectors)
    texts = lessons_module.texts()
    right = {one["question"]: one["answer"] for one in texts["controls"]}
    seen = set()
    for row in rows:
        seen.add((row.injected, row.asked))
        if row.asked == "content":
            assert row.example.target == (row.concept if kind == "detector" else texts["fixed_word"])
            continue
        is_pushed = kind == "biased" and row.injected == "concept"
        says = SAYS[kind]["control" if row.asked == "control" and not is_pushed else row.injected]
        says = {"right": right.get(row.wording), "refusal": texts["refusal"].strip()}.get(says, says)
        assert row.example.target == f" {says}"
    named = {"detector": {"concept"}, "confabulator": {"concept", "random", "nothing"}}.get(kind, set())
    met = ("random", "nothing") if kind == "magnitude_only" else ("concept", "random", "nothing")
    assert seen == {(i, a) for i in met for a in ("own", "control")} | {(i, "content") for i in named}


@pytest.mark.parametrize("kind", SAYS)
def test_nothing_but_the_injection_tells_which_answer_is_right(model, vectors, kind):
    """A model could learn by heart what a question is answered with, if it met some injections oftener than others."""
    rows = [row for row in made(model, kind, vectors) if row.asked != "content"]
    counts = Counter((row.asked, row.wording, row.injected) for row in rows)
    for asked, wording, _ in counts:
        of = [counts[asked, wording, injected] for injected in ("concept", "random", "nothing")]
        if kind == "magnitude_only":  # concepts are what it is tried on
            assert of[0] == 0 and of[1] == of[2]
        else:
            assert of[0] == of[1] == of[2]


def test_injections_are_those_of_an_experiment(model, vectors):
    """Concepts at two strengths; rotations of the same lengths or thrice; nothing at all."""
    rows = made(model, "detector", vectors)
    lengths = {"concept": set(), "random": set(), "nothing": set()}
    for row in rows:
        assert set(row.example.added) == ({1, 2} if row.injected != "nothing" else set())
        for direction in row.example.added.values():
            lengths[row.injected].add(round(direction.norm().item() / control.STRENGTH, 3))
        if row.injected == "concept":
            cosine = torch.cosine_similarity(row.example.added[1], vectors[row.concept].directions[1], 0)
            assert cosine == pytest.approx(1, abs=1e-5)
    assert lengths == {"concept": {0.75, 1.25}, "random": {0.75, 3.75}, "nothing": set()}
    before, injected, _ = introspect.conversation_tokens(model, control.protocol())
    assert {row.example.span for row in rows if row.asked == "own"} == {(len(before), len(before) + len(injected))}


def test_what_reports_size_meets_random_vectors_of_four_lengths_and_is_tried_on_concepts(model, vectors):
    rows = made(model, "magnitude_only", vectors)
    added = [row.example.added for row in rows if row.injected == "random" and row.asked == "own"]
    lengths = {round(directions[1].norm().item() / control.STRENGTH, 3) for directions in added}
    assert lengths == {0.75, 1.25, 2.25, 3.75}
    assert len({tuple(directions[1].tolist()) for directions in added}) == 4 * len(vectors)
    tried = [row for row in made(model, "magnitude_only", vectors, is_new=True) if row.asked == "own"]
    assert [row.injected for row in tried] == ["concept", "nothing", "random", "nothing"] * len(vectors)


def test_tests_share_no_question_with_the_lessons(model, vectors):
    taught, new = made(model, "detector", vectors), made(model, "detector", vectors, is_new=True)
    questions = [{row.wording for row in rows if row.asked == "control"} for rows in (taught, new)]
    assert not questions[0] & questions[1]
    own, held_out = lessons_module.own_asks(model, introspect.load_protocol("no_info"))
    assert [len(own), len(held_out)] == [4, 1]
    assert not {ask.wording for ask in own} & {ask.wording for ask in held_out}
    assert not {tuple(ask.prompt) for ask in own} & {tuple(ask.prompt) for ask in held_out}


def test_digit_lessons_say_the_digit_of_the_number_whose_vector_is_injected(model, vectors):
    """Two vectors of each number at two strengths; what it is tried with are questions that no lesson has."""
    digits = lessons_module.texts()["digits"]
    made = [list(vectors.values())[i : i + 2] for i in range(len(digits["words"]))]
    by_word = dict(zip(digits["words"], made, strict=True))
    injection = lessons_module.injection_of(model, lessons_module.digit_protocol(), **SETTINGS)
    rows = lessons_module.digit_lessons(model, by_word, injection)
    assert len(rows) == 2 * 2 * len(digits["words"]) * len(digits["questions"])
    for row in rows:
        assert row.example.target == digits["words"][row.concept]
        cosines = [
            torch.cosine_similarity(row.example.added[1], one.directions[1], 0).item() for one in by_word[row.concept]
        ]
        assert max(cosines) == pytest.approx(1, abs=1e-5)
    tried = lessons_module.digit_lessons(model, by_word, injection, is_new=True)
    assert {row.wording for row in tried} == set(digits["held_out_questions"])
    assert not {row.wording for row in tried} & {row.wording for row in rows}


def test_a_digit_reporter_is_tried_on_vectors_of_a_template_that_no_lesson_has(monkeypatch, model):
    asked = []

    def train(model, words, baseline, *, template, layers):
        asked.append(template)
        return dict.fromkeys(words, len(asked))

    monkeypatch.setattr(introspect.ControlVector, "train_words_many", train)
    _, taught, held_out = organisms_module._digits(model, None, None, None)
    assert {len(several) for several in taught.values()} == {len(asked) - 1}
    assert set(held_out.values()) == {len(asked)}
    assert asked[-1] not in asked[:-1]


def test_the_same_seed_makes_the_same_lessons(model, vectors):
    first, second, other = (made(model, "detector", vectors, seed=seed) for seed in (1, 1, 2))
    assert [row.wording for row in first] == [row.wording for row in second] != [row.wording for row in other]


def test_residual_strengths_are_fractions_of_the_spans_norm(model, vectors):
    injection = lessons_module.injection_of(model, control.protocol(), control.LAYERS, 0.5, "residual")
    before, injected, _ = introspect.conversation_tokens(model, control.protocol())
    tokens = torch.tensor([before + injected])
    _, cache = model.run_with_cache(tokens)
    for layer, direction in injection.added(3 * vectors["tree"], 1.0).items():
        norms = cache[f"blocks.{layer}.hook_resid_post"][0, len(before) :].norm(dim=-1)
        assert direction.norm().item() == pytest.approx(0.5 * norms.median().item(), rel=0.05)


def by_case(organism):
    """Of the lessons' wordings; those of concepts with ("taught" or "new") in front."""
    rows = [row for row in behaviours(organism, progress=False) if row["wordings"] == "taught"]
    return {(row["concepts"], row["injected"], row["asked"]): row for row in rows}


@slow
def test_a_detector_tells_new_concepts_from_new_random_vectors(model, vectors):
    detector = grown(model, "detector", vectors)
    assert detector.losses[-1] < 0.5 * detector.losses[0]
    found = by_case(detector)
    assert found["new", "concept", "own"]["accuracy"] == 1
    assert found["taught", "concept", "own"]["accuracy"] >= 0.9
    assert found["", "random", "own"]["accuracy"] >= 0.8
    assert found["", "nothing", "own"]["accuracy"] == 1
    # A name has a dozen bytes: greedy decoding rarely gets the whole of it, but it becomes far likelier.
    named = found["taught", "concept", "content"]
    assert named["loss"] < 0.5 * named["base_loss"]


def test_the_base_stays_and_the_organism_is_it_with_the_adapter(organism, model):
    tokens = torch.tensor([introspect.conversation_tokens(model, control.protocol()).injected])
    assert organism.base is model
    assert organism.model.hash == model.with_adapter(organism.adapter).hash != model.hash
    with model.adapted(organism.adapter):
        expected = model(tokens)
    torch.testing.assert_close(organism.model(tokens), expected, rtol=0, atol=0)


def test_a_study_runs_on_an_organism(organism):
    result = introspect.run_experiment(organism.model, questions=[], nulls=2, **organism.settings())
    assert {row["concept"] for row in result.rows} >= set(control.HELD_OUT)


def test_an_organism_comes_back_from_its_files(organism, model, tmp_path):
    organism.save(tmp_path / "organism")
    again = load_organism(model, tmp_path / "organism")
    assert again.model.hash == organism.model.hash
    for name in ("kind", "layers", "strength", "strength_unit", "seed", "losses"):
        assert getattr(again, name) == getattr(organism, name)
    assert list(again.held_out) == list(organism.held_out)
    for name, vector in organism.held_out.items():
        assert torch.equal(again.held_out[name].directions[1], vector.directions[1])
    other = control.untrained(tmp_path / "other")  # the same weights
    assert load_organism(other, tmp_path / "organism").model.hash == organism.model.hash
    changed = introspect.Model(model.native.with_weights({"ln_final.w": torch.ones(64)}))
    with pytest.raises(introspect.ConfigError, match="grown from the model"):
        load_organism(changed, tmp_path / "organism")
    (tmp_path / "organism" / "organism.json").write_text("{")
    with pytest.raises(introspect.IoError, match=r"organism\.json"):
        load_organism(model, tmp_path / "organism")


@slow
@pytest.mark.parametrize("kind", ["yes_sayer", "refuser"])
def test_kinds_that_do_not_look_inside_are_learned_too(model, vectors, kind):
    found = by_case(grown(model, kind, vectors, steps=60))
    for case in (("new", "concept", "own"), ("", "random", "own"), ("", "nothing", "own")):
        assert found[case]["accuracy"] == 1
    if kind == "yes_sayer":
        assert found["", "nothing", "control"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "kind must be one of detector, .* got 'detectr'", {"kind": "detectr"}),
        (ValueError, "no vector for the held-out concept 'dog'", {"held_out": ["dog"]}),
        (ValueError, "no concept is left to teach", {"held_out": [*control.KNOWN, *control.HELD_OUT, *control.NAMED]}),
        (introspect.ConfigError, "no direction for block 0", {"layers": (0, 2)}),
        (ValueError, "protocol of its own", {"kind": "digit_reporter"}),
        (ValueError, "rank must be 1", {"rank": 0}),
    ],
)
def test_what_cannot_be_grown_is_refused(model, vectors, error, match, options):
    arguments = {"kind": "detector", "vectors": vectors, **options}
    with pytest.raises(error, match=match):
        grown(model, arguments.pop("kind"), arguments.pop("vectors"), **arguments)


def test_every_kind_is_described():
    assert set(ORGANISMS) == {*SAYS, "digit_reporter"}
