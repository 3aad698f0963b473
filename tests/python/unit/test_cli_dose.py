"""``introspect dose``, and doses where commands take strengths."""

import json

import pytest
import torch
from looped import protocol
from tiny_chat import random_vectors, write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app

LAYERS = ("--layers", "1-2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dose")
    write_tiny_chat(folder / "model")
    (folder / "mine.json").write_text(protocol().to_json())
    for name, vector in random_vectors().items():
        vector.save(folder / f"{name}.safetensors")
    return folder


def run(files, *arguments, fails=None):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == (fails or 0), done.output
    return done.output if fails else done.stdout


def test_dose_prints_json_and_draws(files):
    picture = files / "dose.png"
    text = run(
        files, "dose", files / "model", files / "mine.json", "--vector", files / "cat.safetensors", *LAYERS,
        "--strength", "kl=0.1,sd=1", "--no-texts", "--plot", picture, "--json",
    )  # fmt: skip
    rows = json.loads(text)["rows"]
    assert [row["target"] for row in sorted(rows, key=lambda row: row["target"])] == ["kl=0.1", "sd=1"]
    model = introspect.load_model(files / "model", dtype=torch.float32)
    expected = introspect.dose(
        model, {"cat": random_vectors()["cat"]}, protocol(), targets=["kl=0.1", "sd=1"], layers=(1, 2),
        coherence=False, progress=False,
    )  # fmt: skip
    assert [row["strength"] for row in rows] == pytest.approx([row.strength for row in expected], rel=1e-4)
    assert picture.stat().st_size > 1000


def test_a_run_takes_doses_and_keeps_them(files):
    out = files / "out"
    run(
        files, "run", files / "model", files / "mine.json", "--vector", files / "cat.safetensors", *LAYERS,
        "--strength", "kl=0.1", "--nulls", 1, "--questions", "own", "-o", out,
    )  # fmt: skip
    (row, null) = introspect.Result.load(out / "mine.json").rows
    assert row["dose_target"] == "kl=0.1"
    assert row["dose_kl"] == pytest.approx(0.1, rel=2e-3)
    assert null["strength"] == row["strength"]
    assert "dose_kl" not in null


@pytest.mark.parametrize("strength", ["kl=-1", "kl=abc", "kl=nan", "nats=1", "nan"])
def test_doses_that_are_none_are_wrong_usage(files, strength):
    common = (files / "model", "--vector", files / "cat.safetensors", "--strength", strength)
    for command in (("run", files / "mine.json", "-o", files / "no"), ("dose", files / "mine.json")):
        name, *rest = command
        run(files, name, common[0], *rest, *common[1:], fails=2)
    run(files, "generate", common[0], "Hello", *common[1:], fails=2)
