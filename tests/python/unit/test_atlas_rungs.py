"""The rungs of a replication: entries feed the arms they say, verdicts follow rows whose truth is known."""

import json
import math

import numpy as np
import pytest
import synthetic
import tiny_chat
from chances import at_most
from scipy import stats
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.data import share_folder
from introspect.experiments.results import Result
from introspect.studies import atlas
from introspect.studies.atlas.expand import Cell
from introspect.studies.atlas.verdict import claims_of, evidence_of, verdict
from introspect.studies.ladder import ladder
from introspect.studies.rungs import Contrast, own_step

CONCEPTS = ["cat", "bread", "rain", "gold", "moss", "lamp", "coal", "wing"]
ASKED = {
    "turns": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "Is it so?"},
        {"role": "assistant", "content": "It is"},
    ],
    "injected": [0],
}


def entry(**fields):
    data = {
        "name": "known",
        "title": "Known",
        "source": "nobody",
        "asks": "Does it notice?",
        "published": {"models": ["none"], "figures": []},
        "settings": {},
        "parts": [part("detect", {"injected": {"who": "own"}, "third_person": {"who": "other"}}, vary=WHO)],
        "differs": [],
        "wording": "own",
    }
    return atlas.Entry.parse(json.dumps({**data, **fields}))


WHO = {"who": {"own": {}, "other": {"question": "Is it so with him?"}}}


def part(name, arms, measures=("yes_shift",), **more):
    return {"name": name, "protocol": ASKED, "measures": list(measures), "arms": arms, **more}


def cell(which, about=None, sign=1, **tags):
    return Cell(which, about, {"order": 0, "vector": "own", **tags}, sign, experiment=None)


def readings(concept, shift, kind="introspection", base=-1.0, question="Is it so?", **more):
    question_kind = more.pop("question_kind", "control" if kind == "control" else "introspection")
    before, after = synthetic.side(base), synthetic.side(base + shift)
    for side, values in ((before, more.pop("before", {})), (after, more.pop("after", {}))):
        side.update(values)
    return {**synthetic.row(concept, kind, question, question_kind, before, after), **more}


def result(rows, read="yes_no"):
    return Result(synthetic.result("known", read, rows))


def test_readings_feed_the_arms_that_parts_name():
    known = entry()
    (detect,) = known.parts
    own = result(
        [
            readings("cat", 2.0),
            readings("cat", 0.5, kind="random", null_index=0),
            readings("cat", 0.25, kind="control", question="Is ice hot?"),
            readings("bread", math.nan),
        ]
    )
    other = result([readings("cat", 1.5), readings("cat", 9.0, kind="random", null_index=0)])
    found = evidence_of([cell(detect, who="own"), cell(detect, who="other")], [own, other])
    values = {name: list(arm.value) for name, arm in found.arms.items() if name != "format"}
    hand = {"injected": [2.0], "rotations": [0.5], "factual_no": [0.25], "third_person": [1.5]}
    assert values.keys() == hand.keys()
    for name, wanted in hand.items():
        assert values[name] == pytest.approx(wanted), name
    assert list(found.arms["injected"].paraphrase) == ["own"]
    assert found.failed["bread"] == (1, 1)
    assert "1 of 6 readings are no finite numbers" in " ".join(found.notes)


def test_the_named_word_gains_beside_the_others():
    known = entry(parts=[part("name", {"content": {}}), part("told", {"no_question": {}})])
    shares = ({"cat": 0.1, "bread": 0.2, "apple": 0.5}, {"cat": 0.4, "bread": 0.1, "apple": 0.5})
    rows = [readings("cat", 0.0, before={"answer_shares": shares[0]}, after={"answer_shares": shares[1]})]
    rows += [readings("bread", 0.0, before={"answer_shares": shares[0]}, after={"answer_shares": shares[0]})]
    found = evidence_of([cell(one) for one in known.parts], [result(rows), result(rows)])
    gain = math.log(0.4 / 0.1) - math.log(0.1 / 0.2)  # of apple, which is no concept, nothing
    assert dict(zip(found.arms["content"].concept, found.arms["content"].value, strict=True)) == pytest.approx(
        {"cat": gain, "bread": 0.0}
    )
    assert found.arms["no_question"].by_concept() == pytest.approx({"cat": gain, "bread": 0.0})
    # bread's word under cat's direction loses what cat's gains
    assert found.arms["content_other_vectors"].by_concept() == pytest.approx({"bread": -gain, "cat": 0.0})


def places(concept, gain, base=(-1.0, -2.0)):
    """Two passages, of which the second is injected and its letter gains."""
    before, after = ({"answers": [{"log_prob": one} for one in side]} for side in (base, (base[0], base[1] + gain)))
    return {**readings(concept, 0.0, before=before, after=after), "place": 1}


@pytest.mark.parametrize(("gain", "live"), [(0.5, "holds"), (0.0, "fails")])
def test_an_injection_that_moves_no_letter_is_not_live(gain, live):
    (where,) = entry(parts=[part("where", {"localised": {}})]).parts
    found = result([places(name, gain * (i + 1)) for i, name in enumerate(CONCEPTS)])
    found.protocol["answers"] = [" A", " B"]
    shown = claims_of(entry(), [cell(where)], [found], [])
    assert shown["live"].verdict == live
    assert ("changed nothing for cat" in shown["live"].sentence) == (live == "fails")
    assert ("Nothing was injected" in shown.strongest) is False
    assert shown["localisation"].contrasts[0]["effect"] == pytest.approx(0.5 if gain else -0.5)


def test_answers_that_were_not_read_are_said():
    (named,) = entry(parts=[part("name", {"content": {}})]).parts
    with pytest.raises(ValueError, match="answers are not read"):
        evidence_of([cell(named)], [result([readings("cat", 0.0)])])


@pytest.mark.parametrize(
    ("shift", "rotations", "controls", "said"),
    [
        (2.0, 0.0, 0.0, {"sham": "holds", "equal_norm": "holds"}),
        (2.0, 2.0, 0.0, {"sham": "holds", "equal_norm": "fails"}),
        (2.0, 0.0, 2.0, {"equal_norm": "holds", "questions": "fails"}),
        (-2.0, -2.0, 0.0, {"sham": "fails"}),
        (0.0, 0.0, 0.0, {"sham": "fails", "equal_dose": "not run", "content": "not run"}),
    ],
)
def test_verdicts_follow_rows_whose_truth_is_known(shift, rotations, controls, said, numpy_rng):
    known = entry(parts=[part("detect", {"injected": {}})])
    (detect,) = known.parts
    noise = lambda: float(numpy_rng.normal(0, 0.05))  # noqa: E731
    rows = []
    for name in CONCEPTS:
        rows.append(readings(name, shift + noise()))
        rows += [readings(name, rotations + noise(), kind="random", null_index=k) for k in range(4)]
        rows += [
            readings(name, controls + noise(), kind="control", group=group, question=f"{group} {k}", base=base)
            for group, base in (("factual_yes", 3.0), ("factual_no", -3.0), ("contested", 0.0))
            for k in range(2)
        ]
    shown = claims_of(known, [cell(detect)], [result(rows)], [])
    assert {name: shown[name].verdict for name in said} == said
    line = verdict(shown)
    assert shown.strongest in line and "\n" not in line
    assert f"not run: {sum(rung.verdict == 'not run' for rung in shown.rungs)} of" in line
    assert all(rung.what_would_run_it for rung in shown.rungs if rung.verdict == "not run")


OWN = {
    "name": "rises",
    "title": "rises with it",
    "contrasts": {"nothing": ["report/self_report"], "another question": ["report/self_report", "report/unrelated"]},
    "stands": "the number rises with the strength",
    "smallest": 0.1,
}


def numbers(concept, strength, said, about):
    shares = [{str(n): float(n == k) for n in range(10)} for k in (0, said)]
    row = readings(concept, 0.0, before={"answer_shares": shares[0]}, after={"answer_shares": shares[1]})
    return {**row, "strength": strength, "question": about}


@pytest.mark.parametrize(
    ("asked", "unrelated", "said"),
    [
        ((2, 3, 5, 8), (8, 5, 3, 2), "holds"),
        ((8, 5, 3, 2), (1, 2, 3, 4), "fails"),
    ],
)
def test_a_claim_of_the_studys_own_is_a_rung(asked, unrelated, said):
    measures = [
        {"measure": "self_report", "of": {"who": "own"}},
        {"measure": "self_report", "name": "unrelated", "of": {"who": "other"}},
    ]
    known = entry(parts=[part("report", {"own": {"who": "own"}}, measures, vary=WHO)], claims=[OWN])
    (report,) = known.parts
    cells, results, read = [], [], []
    for who, numbers_said in (("own", asked), ("other", unrelated)):
        rows = []
        for i, name in enumerate(CONCEPTS):
            # one concept in four says the strongest two the other way round, so that concepts differ
            order = list(numbers_said[:2]) + list(reversed(numbers_said[2:]) if i % 4 == 0 else numbers_said[2:])
            rows += [numbers(name, 0.1 * 2**k, number, who) for k, number in enumerate(order)]
        cells.append(cell(report, who=who))
        results.append(result(rows))
        tags = {"kind": "introspection", "group": "", "order": 0, "vector": "own", "who": who}
        read += [atlas.measures.Reading(row, row["concept"], row["concept"], tags) for row in rows]
    figures = [figure for measure in report.measures for figure in measure.figures("report", read)]
    shown = claims_of(known, cells, results, figures)
    rung = shown["rises"]
    assert rung.branch == "own" and rung.unit == "rank correlation"
    assert rung.verdict == said
    mine = [stats.spearmanr(range(4), row)[0] for row in (asked, [*asked[:2], *asked[:1:-1]])]
    others = [stats.spearmanr(range(4), row)[0] for row in (unrelated, [*unrelated[:2], *unrelated[:1:-1]])]
    effects = {one["name"]: one["effect"] for one in rung.contrasts}
    assert effects["nothing"] == pytest.approx((3 * mine[0] + mine[1]) / 4)
    assert effects["another question"] == pytest.approx((3 * (mine[0] - others[0]) + mine[1] - others[1]) / 4)
    assert shown.strongest.startswith("The number rises") == (rung.verdict == "holds")


def test_a_claim_of_its_own_that_is_false_holds_as_seldom_as_stated():
    rng, n_false, draws = np.random.default_rng(0), 0, 400
    nothing = atlas.verdict.Evidence({})
    for _ in range(draws):
        values = dict(zip(CONCEPTS, rng.normal(0, 1, len(CONCEPTS)), strict=True))
        step = own_step("own", "own", "it is so", [Contrast("chance", values)], unit="nats", least=0)
        n_false += ladder(nothing, own=[step])["own"].verdict == "holds"
    assert n_false <= at_most(0.025, draws)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": [part("detect", {"rotations": {}})]}, "arms must be of injected.*, got .*rotations"),
        ({"parts": [part("detect", {"injected": {"colour": "red"}})]}, r"arms.injected must be \{axis"),
        ({"claims": [{**OWN, "smallest": -1}]}, "smallest must be 0 or more"),
        ({"claims": [{**OWN, "contrasts": {"nothing": []}}]}, "contrasts must be"),
        ({"claims": [OWN]}, "claims must be of figures that there are .*report/self_report"),
        ({"claims": [{**OWN, "colour": "red"}]}, r"claims\[0\]: unknown field colour"),
    ],
)
def test_mistakes_in_arms_and_claims_have_their_place(fields, message):
    with pytest.raises(introspect.ConfigError, match=message):
        entry(**fields)


def atlas_text(name):
    return (share_folder() / "atlas" / f"{name}.json").read_text(encoding="utf-8").replace("meant/", "intended/")


def test_every_entry_feeds_a_rung_with_concepts_enough_to_show_something():
    for name in atlas.ENTRIES:
        known = atlas.entry(name)
        assert any(one.arms for one in known.parts), name
        # two sides, and up to three kinds of claims: 2^-n must be at most 0.05 / 2 / 3
        assert 2.0 ** -known.settings["concepts"] <= 0.05 / 2 / 3, name


def test_a_replication_has_its_rungs(tmp_path):
    model = introspect.load_model(tiny_chat.write_tiny_chat(tmp_path / "model"))
    ran = atlas.replicate("lindsey_prefill", model, vectors=tiny_chat.random_vectors())
    assert ran.claims["owns"].verdict == "not shown"  # of two concepts nothing can be
    assert "2 concepts, and 6 are the least" in ran.claims["owns"].sentence
    assert ran.claims["owns"].effect == pytest.approx(ran["meant/own_beyond_other"].estimate.value)
    ran.save(tmp_path / "ran.json")
    again = atlas.Replication.load(tmp_path / "ran.json")
    assert str(again) == str(ran) and again.to_json() == ran.to_json()
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "ran.json")])
    assert shown.exit_code == 0 and shown.stdout == f"{ran}\n"
    other = atlas.Entry.parse(atlas_text("lindsey_prefill").replace('"meant"', '"intended"'))
    with pytest.raises(ValueError, match=r"ran.json: it was run with another form of 'lindsey_prefill'.*intended"):
        atlas.Replication.load(tmp_path / "ran.json", other)
    saved = json.loads(ran.to_json())
    assert saved["verdict"] == ran.verdict
    assert {rung["name"] for rung in saved["claims"]["rungs"]} > {"live", "sham", "content", "owns"}
    assert f"verdict: {ran.verdict}" in " ".join(str(ran).split()).replace("  ", " ")


def test_a_model_without_chat_template_is_refused_before_vectors_are_trained(tmp_path):
    folder = tiny_chat.write_tiny_chat(tmp_path / "model")
    for path in folder.iterdir():
        if path.name in ("tokenizer_config.json", "chat_template.jinja"):
            data = json.loads(path.read_text()) if path.suffix == ".json" else None
            path.write_text(json.dumps({**data, "chat_template": None}) if data else "")
    bare = introspect.load_model(folder)
    with pytest.raises(introspect.ConfigError, match=r"has no chat template.*--chat-template.*\"plain\" writes"):
        atlas.replicate("godet", bare)
    given = introspect.load_model(folder, chat_template="plain")
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": "So?"},
    ]
    assert (
        given.apply_chat_template(said, add_generation_prompt=True)
        == "User: Hi\n\nAssistant: Ok.\n\nUser: So?\n\nAssistant:"
    )
    assert atlas.replicate("lindsey_prefill", given, vectors=tiny_chat.random_vectors(), plan=True).readings > 0
