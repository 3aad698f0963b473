"""``introspect study``: questions of one's own."""

import json

import pytest
import torch
from looped import protocol
from tiny_chat import random_vectors, write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.studies import Study, run_study

pytestmark = pytest.mark.filterwarnings("ignore:.*left the format of the answer")

GROUPS = {"mine_yes": ["Is ice cold?", "Is rain wet?"], "mine_no": ["Is ice hot?"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_tiny_chat(folder / "model")
    (folder / "mine.json").write_text(protocol().to_json())
    random_vectors()["cat"].save(folder / "cat.safetensors")
    return folder


def run(files, groups):
    arguments = ["study", "model", "mine.json", "--vector", "cat.safetensors", "--layers", "1-2", "--nulls", "1"]
    arguments = [str(files / one) if (files / one).exists() else one for one in arguments]
    more = ["--strength", "2", "--arm", "injected", "--arm", "question_groups", "--groups", groups, "-o", files / "out"]
    return CliRunner().invoke(app, [str(one) for one in (*arguments, *more)])


def test_questions_of_a_file_are_asked_in_their_groups(files):
    (files / "groups.json").write_text(json.dumps(GROUPS))
    done = run(files, files / "groups.json")
    assert done.exit_code == 0, done.output
    rows = Study.load(files / "out" / "mine.study.json")["question_groups"].rows
    assert {(row["group"], row["question"]) for row in rows} == {
        (group, question) for group, questions in GROUPS.items() for question in questions
    }
    model = introspect.load_model(files / "model", dtype=torch.float32)
    expected = run_study(
        model, protocol(), vectors={"cat": random_vectors()["cat"]}, layers=(1, 2), strengths=2.0, nulls=1,
        arms=["injected", "question_groups"], groups=GROUPS, progress=False,
    )["question_groups"].rows  # fmt: skip

    def values(rows):
        return {(row["question"], row["null_index"]): row["injected"]["log_odds"] for row in rows}

    assert values(rows) == pytest.approx(values(expected), abs=1e-4)  # float32 in other batches


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": []}', '{"a": "Is ice cold?"}', '{"a": [1]}', None])
def test_files_that_hold_no_groups_are_refused(files, text):
    path = files / "bad.json"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    done = run(files, path)
    assert done.exit_code == 2
    assert "--groups" in done.output
