"""Attribution that is planned, refused for its time, killed and resumed."""

import subprocess
import sys
from pathlib import Path

import graph_sets
import pytest
import torch
from graph_sets import tokens_of
from tiny import write_tiny_transformers

import introspect
from introspect import IoError
from introspect.circuits import AttributionPlan, Injection, attribute

# Killed by its own progress, after a batch was written.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import graph_sets, introspect
from introspect.circuits import attribute

def progress(what, done, total):
    if done >= 18:
        os.kill(os.getpid(), signal.SIGKILL)

model = introspect.load_model(sys.argv[2], dtype="float64")
attribute(model, graph_sets.tokens_of(model).tolist(), graph_sets.per_layer(model), resume=sys.argv[3],
          rows_per_batch=6, batches_per_update=2, max_features=60, progress=progress)
"""
OPTIONS = {"rows_per_batch": 6, "batches_per_update": 2, "max_features": 60}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_transformers(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def model(path):
    return introspect.load_model(path, dtype="float64")


def graph_of(model, **options):
    tokens, transcoders = tokens_of(model).tolist(), graph_sets.per_layer(model)
    return attribute(model, tokens, transcoders, **{**OPTIONS, "progress": False, **options})


def same(a, b):
    return a.nodes == b.nodes and a.native.targets == b.native.targets and all(
        torch.equal(getattr(a.native, name), getattr(b.native, name)) for name in ("offsets", "sources", "weights")
    )  # fmt: skip


def test_a_killed_search_goes_on_to_the_same_graph(model, path, tmp_path):
    folder = tmp_path / "rows"
    helpers = str(Path(graph_sets.__file__).parent)
    ended = subprocess.run([sys.executable, "-c", KILLED, helpers, str(path), str(folder)], timeout=120, check=False)
    assert ended.returncode == -9
    written = sorted(file.name for file in folder.iterdir())
    assert len(written) >= 4  # targets, and three batches
    times = {name: (folder / name).stat().st_mtime_ns for name in written}
    resumed = graph_of(model, resume=folder)
    assert same(resumed, graph_of(model))
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == times  # nothing was made twice
    assert same(graph_of(model, resume=folder), resumed)


def test_a_file_that_was_cut_short_is_no_silent_loss(model, tmp_path):
    graph_of(model, resume=tmp_path)
    file = sorted(tmp_path.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IoError, match=file.name):
        graph_of(model, resume=tmp_path)
    file.unlink()
    assert same(graph_of(model, resume=tmp_path), graph_of(model))


@pytest.mark.parametrize(
    "other",
    [
        {"max_features": 50},
        {"edges_per_row": 3},
        {"mask_first": False},
        {"injections": [Injection(0, [2], torch.ones(48))]},
        {"logit_mass": 0.5},
    ],
)
def test_rows_of_another_graph_are_refused(model, tmp_path, other):
    graph_of(model, resume=tmp_path)
    with pytest.raises(IoError, match="holds rows of another graph"):
        graph_of(model, resume=tmp_path, **other)


def test_rows_of_another_prompt_or_set_are_refused(model, tmp_path):
    tokens = tokens_of(model).tolist()
    graph_of(model, resume=tmp_path)
    with pytest.raises(IoError, match="of another model, prompt"):
        attribute(model, tokens[::-1], graph_sets.per_layer(model), resume=tmp_path, progress=False, **OPTIONS)
    with pytest.raises(IoError, match="of another model, prompt"):
        others = graph_sets.per_layer(model, d_sae=25)
        attribute(model, tokens, others, resume=tmp_path, progress=False, **OPTIONS)


def test_a_folder_that_cannot_be_made_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IoError, match="cannot be made"):
        graph_of(model, resume=tmp_path / "file")


def test_a_plan_says_what_a_graph_takes(model, tmp_path):
    plan = graph_of(model, plan=True, resume=tmp_path / "rows")
    assert isinstance(plan, AttributionPlan)
    graph = graph_of(model)
    assert plan.active_features == graph.notes["active_features"]
    assert plan.rows == 60 == graph.notes["features_with_rows"]
    assert plan.rows_per_batch == 6 and plan.seconds > 0 and plan.bytes > 0
    assert "60 rows over" in str(plan)
    assert not (tmp_path / "rows").exists()


def test_too_little_time_is_refused_with_the_estimate(model):
    with pytest.raises(ValueError, match=r"60 rows over \d+ active features would take about .* s and .* time budget"):
        graph_of(model, time_budget=1e-9)
    assert same(graph_of(model, time_budget=3600), graph_of(model))
    with pytest.raises(ValueError, match="time_budget must be"):
        graph_of(model, time_budget=-1)
    with pytest.raises(ValueError, match="MiB, and the memory budget is"):
        graph_of(model, memory_budget=1000)
