"""Studies that are written down before they are run."""

import json

import pytest
import studies

import introspect
from introspect.studies.registration import Registration, register

PLAN = {
    "hypotheses": {"sham": "holds", "equal_norm": "fails"},
    "model": "qwen2.5-coder-0.5b-instruct",
    "protocol": "with_info",
    "arms": ["injected", "rotations", "equal_dose", "swap", "question_groups"],
    "concepts": list(studies.CONCEPTS[:8]),
    "strengths": [0.1, 0.2],
    "layers": [(8, 16)],
    "seeds": [0],
    "stopping": "after one run of every arm",
}


@pytest.fixture
def study(numpy_rng):
    made = studies.study(numpy_rng, shifts=dict(zip(studies.CONCEPTS[:8], numpy_rng.normal(1, 0.3, 8), strict=True)))
    protocol = introspect.load_protocol("with_info")
    for result in made.results.values():
        result.protocol["hash"] = protocol.hash
        result.settings["versions"]["introspect"] = introspect.__version__
    return made


def test_a_plan_is_written_read_and_kept_to(study, tmp_path):
    path = tmp_path / "plan.json"
    written = register(path, **PLAN)
    plan = Registration.load(path)
    assert plan == written and plan.sha256 == json.loads(path.read_text())["sha256"]
    assert Registration.load(path, sha256=written.sha256) == written
    assert plan.check(study) == []
    assert study.registration["sha256"] == plan.sha256 and study.registration["deviations"] == []
    outcomes = {one["rung"]: (one["expected"], one["found"]) for one in study.registration["outcomes"]}
    assert outcomes == {"sham": ("holds", "holds"), "equal_norm": ("fails", "holds")}
    assert introspect.studies.Study.from_json(study.to_json()).registration == study.registration


def test_a_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    first = register(path, **PLAN)
    data = json.loads(path.read_text())
    for change in (
        {"concepts": ["cat"]},
        {"smallest": 0.5},
        {"hypotheses": {"sham": "fails"}},
        {"stopping": "when it works"},
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(introspect.IoError, match="was changed after it was written"):
            Registration.load(path)
    path.write_text(json.dumps(data))  # laid out otherwise, and the same
    assert Registration.load(path) == first
    # Who changes the hash as well is found by the hash that was noted elsewhere.
    other = register(tmp_path / "other.json", **PLAN | {"concepts": ["cat"]})
    with pytest.raises(introspect.IoError, match="another plan"):
        Registration.load(tmp_path / "other.json", sha256=first.sha256)
    assert other.sha256 != first.sha256


def test_a_plan_is_written_once(tmp_path):
    register(tmp_path / "plan.json", **PLAN)
    with pytest.raises(FileExistsError, match="written once"):
        register(tmp_path / "plan.json", **PLAN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "another"}, "The model is qwen2.5-coder-0.5b-instruct, registered was another."),
        ({"model_hash": "0" * 64}, "weights are others"),
        ({"protocol": "no_info"}, "The protocol is with_info"),
        (
            {"arms": ["injected", "rotations", "equal_dose", "swap"]},
            "The arm “question_groups” was run and not registered.",
        ),
        ({"arms": [*PLAN["arms"], "noise"]}, "The arm “noise” was registered and not run."),
        ({"concepts": [*PLAN["concepts"], "lamp"]}, "The concept “lamp” was registered and not run."),
        ({"strengths": [0.1]}, "The strength 0.2 was run and not registered."),
        ({"layers": [(8, 16), (4, 8)]}, "The range of layers 4–8 was registered and not run."),
        ({"seeds": [1]}, "The seed 0 was run and not registered."),
        ({"paraphrases": ["own", "plainly"]}, "The wording “formally” was run and not registered."),
    ],
)
def test_every_deviation_is_named(change, said, study, tmp_path):
    plan = register(tmp_path / "plan.json", **PLAN | change)
    assert said in " ".join(plan.deviations(study))


def test_an_unfinished_run_another_version_and_a_late_plan_are_deviations(study, tmp_path):
    plan = register(tmp_path / "plan.json", **PLAN)
    study.results["swap"].settings["incomplete"] = {"done": 3, "of": 10}
    study.results["injected"].settings["versions"]["introspect"] = "0.0.1"
    study.settings["started"] = "2020-01-01T00:00:00+00:00"
    said = plan.deviations(study)
    assert len(said) == 3
    assert "“swap” is not finished: 3 of 10" in said[0] and "version 0.0.1" in said[1]
    assert "was begun (2020-01-01T00:00:00+00:00) before it was registered" in said[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hypotheses": {"detected": "holds"}}, "about the rungs live, sham"),
        ({"hypotheses": {"sham": "yes"}}, "must be one of holds, fails"),
        ({"concepts": []}, "concepts must name"),
        ({"stopping": " "}, "stopping must say"),
    ],
)
def test_a_plan_that_says_nothing_is_refused(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        register(tmp_path / "plan.json", **PLAN | change)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "layers": 3}', "[" * 100_000])
def test_a_file_that_is_no_plan_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(introspect.IoError, match=r"plan\.json"):
        Registration.load(tmp_path / "plan.json")
