"""Tables that other programs read: no value of ours is a missing one to them."""

import io
import json

import pandas
import pytest
import synthetic
from looped import CONTROLS, protocol
from tiny_chat import random_vectors

import introspect
from introspect import report
from introspect.experiments.results import Result
from introspect.tables import MISSING, write_table

TEXTS = ["concept", "question", "kind", "question_kind", "asked_in"]
PARAPHRASES = ["Did you?", {"question": "Did you?", "prefix": "I say"}, {"question": "Well?", "name": "in a word"}]


def run(model, given, **options):
    options = {"vectors": random_vectors(), "strengths": [2.0], "layers": [(1, 2)], "nulls": 2, **options}
    return introspect.run_experiment(model, given, **options)


def same(table):
    """The table as pandas.read_csv gives it back, which must be the table."""
    back = pandas.read_csv(io.StringIO(table.to_csv(index=False)))
    pandas.testing.assert_frame_equal(back, table, check_dtype=False, rtol=1e-12)
    return back


@pytest.mark.parametrize("read", ["yes_no", "content"])
@pytest.mark.parametrize("fields", [{}, {"paraphrases": PARAPHRASES}])
def test_a_results_table_survives_csv(model, read, fields):
    back = same(run(model, protocol(controls=CONTROLS, read=read, **fields)).to_pandas())
    for name in TEXTS + (["paraphrase"] if fields else []):
        assert back[name].map(type).eq(str).all(), name
    assert set(back.kind) == {"introspection", "control", "random"}
    assert back.leaves_format.dtype == back.failed.dtype == bool


def test_the_other_tables_survive_csv(model):
    given = protocol(controls=CONTROLS, read="content", paraphrases=PARAPHRASES)
    result = run(model, given, lens=True, top_k=2, continuations=[" yes"], directions=random_vectors())
    for name in ("tokens", "lens", "token_lens", "changes", "projections", "continuations"):
        table = getattr(result, f"{name}_to_pandas")()
        assert set(table.kind) <= {"introspection", "control", "random"}
        texts = [column for column in (*TEXTS, "paraphrase", "direction", "continuation") if column in table]
        back = same(table[[*texts, "null_index"]])
        assert back.notna().all().all(), name


def test_a_stores_table_survives_csv(model, tmp_path):
    store = tmp_path / "cells.sqlite"
    run(model, protocol(controls=CONTROLS, paraphrases=PARAPHRASES), store=store)
    run(model, protocol(name="plain", controls=CONTROLS), store=store, strengths=[0.1], strength_unit="residual")
    introspect.Store(store).export(tmp_path / "cells.csv")
    back, table = pandas.read_csv(tmp_path / "cells.csv"), introspect.Store(store).to_pandas()
    for name in table.columns:
        if table[name].map(type).eq(str).all():
            assert list(back[name]) == list(table[name]), name
    assert back.concept.notna().all() and set(back.kind) == {"base", "introspection", "control", "random"}
    assert set(back[back.protocol == "plain"].paraphrase) == {"own", "control"}
    assert back.mass.notna().all()


def test_a_reports_table_survives_csv():
    same(report.table([Result(synthetic.detection()), Result(synthetic.detection("no_info"))]))


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_concept_that_would_vanish_from_tables_is_refused(model, name):
    assert pandas.isna(pandas.read_csv(io.StringIO(f"a,b\n{name},1")).a[0])
    (vector, _) = random_vectors().values()
    with pytest.raises(ValueError, match="missing value"):
        run(model, protocol(), vectors={name: vector})


def test_old_files_say_null_and_are_read_as_random(tmp_path):
    data = synthetic.detection()
    expected = Result(json.loads(json.dumps(data))).detections()
    for row in data["rows"]:
        row["kind"] = "null" if row["kind"] == "random" else row["kind"]
        row["paraphrase"] = 3
    (tmp_path / "x.json").write_text(json.dumps(data))
    old = Result.load(tmp_path / "x.json")
    assert set(old.to_pandas().kind) == {"introspection", "control", "random"}
    assert [d.corrected for d in old.detections()] == [d.corrected for d in expected]
    assert list(old.to_pandas().paraphrase) == list(old.to_pandas().question)  # a text, no number


@pytest.mark.parametrize("text", sorted(MISSING))
def test_a_text_that_readers_take_for_no_value_is_written_so_that_they_do_not(tmp_path, text):
    """Tokens and sampled texts are the model's: they cannot be refused."""
    write_table(pandas.DataFrame({"token": ["cat", text], "n": [1.0, float("nan")]}), tmp_path / "x.csv")
    back = pandas.read_csv(tmp_path / "x.csv")
    assert list(back.token) == ["cat", f"'{text}"]
    assert back.n.isna().tolist() == [False, True]
