"""Arguments of experiments as people give them: taken, or refused in words that say what is wanted."""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from looped import CONTROLS, protocol

import introspect
from introspect import _C
from introspect.cli import run as run_command
from introspect.cli import sweep as sweep_command
from introspect.experiments import detections
from introspect.experiments.run import PROTOCOLS

ROOT = Path(__file__).parents[3]
PYBIND = re.compile("incompatible (function|constructor) arguments|The following argument types|Invoked with")
CALLS = ("run_experiment", "run_experiments", "estimate_ranges", "screen_ranges", "refine_ranges")


def run(model, vectors, given=None, **options):
    options = {"strengths": [2.0], "layers": [(1, 2)], "nulls": 0, "questions": [], **options}
    return introspect.run_experiment(model, given or protocol(controls=CONTROLS), vectors=vectors, **options)


def settings(result):
    return [(s.strength, s.first_layer, s.last_layer) for s in result.groups if s.concept == "cat"]


# Defaults


def test_the_defaults_are_those_of_the_command_line_and_stand_in_one_place(model, vectors):
    result = introspect.run_experiment(model, protocol(controls=CONTROLS), vectors=vectors)
    assert settings(result) == [(0.1, 1, 2)]  # 0.33 and 0.66 of three blocks
    assert result.settings["strength_unit"] == "residual"
    assert result.settings["residual_norm"] == "median"
    assert result.settings["nulls"] == 10 == len({row["null_index"] for row in result.rows}) - 1
    header = (ROOT / "cpp/include/introspect/experiments/defaults.h").read_text()
    for value in ("kDefaultStrength = 0.1", "kDefaultNulls = 10", "kKeptMass = 0.5", "kLeastMass = 0.1"):
        assert value in header
    assert (_C.default_strength, _C.default_nulls, _C.default_layers) == (0.1, 10, (0.33, 0.66))
    assert (_C.kept_mass, _C.least_mass) == (detections.KEPT_MASS, detections.LEAST_MASS)
    from introspect.cli import experiment

    assert experiment.strengths(None, None) == {}  # the command line leaves it to run_experiment
    for command in (run_command.command, sweep_command.command):
        assert inspect.signature(command).parameters["nulls"].default in (None, _C.default_nulls)


@pytest.mark.parametrize("hooked", ["steer", "hook"])
def test_steering_and_hooks_that_an_experiment_would_leave_out_are_refused(model, vectors, hooked):
    before = run(model, vectors).rows
    name = "blocks.1.hook_resid_post"
    in_effect = model.steer(vectors["cat"]) if hooked == "steer" else model.hooks([(name, lambda x, hook: x)])
    with (
        in_effect,
        pytest.raises(introspect.ConfigError, match="run_experiment: model must have nothing hooked into it"),
    ):
        run(model, vectors)
    assert run(model, vectors).rows == before


def test_a_strength_that_is_given_is_absolute_unless_told(model, vectors):
    assert run(model, vectors, strengths=[2.0]).settings["strength_unit"] == "absolute"
    assert "residual_norm" not in run(model, vectors, strengths=[2.0]).settings
    assert run(model, vectors, strengths=[0.1], strength_unit="residual").settings["strength_unit"] == "residual"
    assert run(model, vectors, strengths=None).settings["strength_unit"] == "residual"
    with pytest.raises(ValueError, match="needs strengths"):
        run(model, vectors, strengths=None, strength_unit="absolute")


def test_searches_have_the_same_default_strength_and_run_no_rotations(model, vectors):
    options = {"vectors": vectors, "questions": []}
    given = protocol(controls=CONTROLS)
    for search in (
        introspect.screen_ranges(model, given, k=1, sample=0, **options),
        introspect.refine_ranges(model, given, grid=2, keep=1, **options),
    ):
        assert search.result.settings["strength_unit"] == "residual"
        assert {row["strength"] for row in search.result.rows} == {0.1}
        assert {row["kind"] for row in search.result.rows} == {"introspection"}


# What is taken


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [
        (1, [(1, 1)]),
        ([1], [(1, 1)]),
        (np.int64(1), [(1, 1)]),
        (torch.tensor(1), [(1, 1)]),
        ((1, 2), [(1, 2)]),
        ([(1, 2)], [(1, 2)]),
        ([[1, 2]], [(1, 2)]),
        (((1, 2), (2, 2)), [(1, 2), (2, 2)]),
        ([1, (1, 2)], [(1, 1), (1, 2)]),
        (range(1, 3), [(1, 1), (2, 2)]),
        ((0.34, 1.0), [(1, 2)]),
        ([(0.34, 1.0), (1, 1)], [(1, 2), (1, 1)]),
        (0.34, [(1, 1)]),
        (introspect.layer_ranges(1, 2), [(1, 1), (1, 2), (2, 2)]),
    ],
)
def test_layers_in_every_form(model, vectors, layers, ranges):
    assert [(first, last) for _, first, last in settings(run(model, vectors, layers=layers))] == ranges


def test_one_of_what_could_be_many(model, vectors):
    assert settings(run(model, vectors, strengths=3)) == [(3.0, 1, 2)]
    assert settings(run(model, vectors, strengths=np.array([1.0, 3.0]))) == [(1.0, 1, 2), (3.0, 1, 2)]
    assert settings(run(model, vectors, strengths=torch.tensor([1, 3]))) == [(1.0, 1, 2), (3.0, 1, 2)]
    asked = run(model, vectors, questions="Is it so?")
    assert [row["question"] for row in asked.rows if row["kind"] == "control"] == ["Is it so?"] * 2
    assert run(model, vectors, continuations=" yes").settings["continuations"] == [" yes"]
    half = run(model, vectors, parts=(0.0, 0.5)).rows[0]
    assert (half["part_first"], half["part_last"]) == (0.0, 0.5)
    null = run(model, vectors, null_vectors={"cat": vectors["bread"]})
    assert [row["kind"] for row in null.rows] == ["introspection", "random", "introspection"]
    (told,) = introspect.run_experiments(model, "no_info", vectors=vectors, questions=[], nulls=0)
    assert told.protocol["name"] == "no_info"


def test_protocols_by_name_by_file_and_by_themselves(model, vectors, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(protocol(controls=CONTROLS).to_json())
    for given in ("no_info", introspect.load_protocol("no_info"), path, str(path)):
        name = run(model, vectors, given).protocol["name"]
        assert name == ("mine" if "mine" in str(given) else "no_info")
    results = introspect.run_experiments(model, ["no_info", path], vectors=vectors, questions=[], nulls=0)
    assert [result.protocol["name"] for result in results] == ["no_info", "mine"]
    assert introspect.load_protocol(introspect.load_protocol("no_info")).name == "no_info"
    tokens = introspect.conversation_tokens(model, "no_info")
    assert tokens == introspect.conversation_tokens(model, introspect.load_protocol("no_info"))
    estimates = introspect.estimate_ranges(model, "no_info", vectors=vectors, questions=[])
    assert {part.strength for part in estimates.parts} == {0.1}


# What is refused, and how


BARE = torch.ones(32)
WRONG = {
    "vectors": [BARE, [BARE], {"cat": BARE}, {"cat": None}, {3: None}, None, "cat", 7],
    "strengths": ["2", ["2"], {"a": 1}, [None], object()],
    "layers": ["1-2", [(1, 2, 3)], [("a", "b")], {"a": 1}, [None], [(1,)], [1, 2], [True], (None, 2)],
    "parts": [0.5, ["a"], [(0.0, "b")], [(0.0,)]],
    "questions": [3, [3], {"a": 1}],
    "controls": [3, ["with_info"], "with_inf", "/no/such/file.json"],
    "control_filter": ["a", [1.0]],
    "nulls": [1.5, "3", None, -1, True, 2**70],
    "null_vectors": [[BARE], {"cat": BARE}, {"cat": [BARE]}, 3],
    "concepts": [3, [3], [""]],
    "models": [3, {"a": 3}, ["a"]],
    "strength_unit": ["metres", 3],
    "seed": [1.5, "a", -1, 2**70],
    "top_k": ["a", -1, 1.5],
    "directions": [[BARE], {"a": BARE}, BARE],
    "continuations": [3, [3]],
    "memory_budget": ["a", None, 1.5],
    "progress": [3, "bar"],
    "store": [3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_argument_is_named_and_never_a_signature_dump(model, vectors, name, value):
    options = {"vectors": vectors, name: value}
    with pytest.raises((TypeError, ValueError, introspect.Error)) as caught:
        run(model, options.pop("vectors"), **options)
    text = str(caught.value)
    assert not PYBIND.search(text), text
    assert name in text or name.replace("_", " ") in text or name == "store", text


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", "smollm2-135m-instruct"),
        ("model", torch.nn.Linear(2, 2)),
        ("protocol", 3),
        ("protocol", {"name": "x"}),
        ("protocol", "no_inf"),
        ("vectors", BARE),
        ("vectors", ["cat"]),
        ("questions", 3),
        ("strength_unit", "metres"),
        ("seed", "a"),
        ("progress", 3),
    ],
)
def test_every_function_of_experiments_says_what_it_wants(model, vectors, call, name, value):
    options = {"model": model, "protocol": protocol(), "vectors": vectors, name: value}
    if call == "run_experiments":
        options["protocols"] = options.pop("protocol")
    positional = [options.pop("model"), options.pop("protocols" if "protocols" in options else "protocol")]
    with pytest.raises((TypeError, ValueError, introspect.IoError)) as caught:
        getattr(introspect, call)(*positional, **options)
    assert not PYBIND.search(str(caught.value)), caught.value
    text = str(caught.value)  # what a search hands on to run_experiment is complained of under that name
    assert ((call in text or "run_experiment:" in text) and name in text) or "did you mean 'no_info'" in text


def test_what_may_be_two_things_is_asked_about(model, vectors):
    with pytest.raises(ValueError, match=r"\(1, 2\) for the range.*\[\(1, 1\), \(2, 2\)\] for two blocks"):
        run(model, vectors, layers=[1, 2])
    with pytest.raises(ValueError, match="finite"):
        run(model, vectors, strengths=math.nan)


@pytest.mark.parametrize("source", [3, None, {"name": "x"}, b"no_info", ["no_info"]])
def test_load_protocol_says_what_it_takes(source):
    with pytest.raises(TypeError, match="a shipped name, a file or a Protocol"):
        introspect.load_protocol(source)


def test_load_protocol_names_what_is_near_and_what_is_wrong(tmp_path):
    with pytest.raises(introspect.IoError, match="did you mean 'with_info'"):
        introspect.load_protocol("withinfo")
    with pytest.raises(introspect.IoError, match="folder"):
        introspect.load_protocol(tmp_path)
    with pytest.raises(introspect.IoError, match=", ".join(PROTOCOLS)):
        introspect.load_protocol(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(introspect.ConfigError, match="must be JSON"):
        introspect.load_protocol(tmp_path / "bad.json")
