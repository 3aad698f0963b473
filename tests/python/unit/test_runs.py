"""Runs in folders: what they take and keep, what they add to one another, and what is left of one that ends early."""

import json
import warnings

import pytest
from tiny_chat import random_vectors, write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.experiments import run as experiment
from introspect.experiments import runs
from introspect.experiments.plans import ExperimentPlan
from introspect.experiments.results import Result

QUESTIONS = 2  # the protocol's own and one control
TURNS = [
    {"role": "user", "content": "A thought."},
    {"role": "assistant", "content": "{ }"},
    {"role": "user", "content": "$QUESTION"},
    {"role": "assistant", "content": "The answer is"},
]


def protocol_text(name="mine", question="Noticed it?", **more):
    own = [*TURNS[:2], {"role": "user", "content": question}, TURNS[3]]
    controls = {"turns": TURNS, "injected": [0, 1], "questions": ["Is ice hot?"]}
    return json.dumps({"name": name, "turns": own, "injected": [0, 1], "controls": controls, **more})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate(("model", "other")):
        write_tiny_chat(folder / name, seed=seed, num_hidden_layers=4)
    random_vectors((1, 2, 3))["cat"].save(folder / "cat.gguf")
    (folder / "mine.json").write_text(protocol_text())
    return folder


@pytest.fixture(scope="module")
def model(tiny):
    return introspect.load_model(tiny / "model", dtype="float64")


def invoke(tiny, out, *arguments, command="run", model="model", protocol="mine.json"):
    given = [command, tiny / model, tiny / protocol, "--vector", tiny / "cat.gguf", "-o", out, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def experiment_of(model, **options):
    options = {"vectors": random_vectors((1, 2, 3)), "strengths": [2.0], "nulls": 1, **options}
    return introspect.run_experiment(model, introspect.Protocol.parse(protocol_text()), **options)


# What a run takes


def test_a_dry_run_says_how_much_there_is_and_writes_nothing(tiny, tmp_path):
    arguments = ("--strength", "1", "--layers", "1-2", "--layers", "3", "--nulls", "2")
    shown = invoke(tiny, tmp_path / "out", *arguments, "--dry-run", "--json")
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.stdout)
    assert plan["readings"] == QUESTIONS * (1 + 2 * (1 + 2)) and plan["found"] == 0
    loaded = introspect.load_model(tiny / "model")
    protocol = introspect.load_protocol(tiny / "mine.json")
    tokens = [
        sum(map(len, introspect.conversation_tokens(loaded, protocol, question))) for question in (None, "Is ice hot?")
    ]
    assert plan["token_layers_asked"] == sum(tokens) * 4 * (1 + 2 * (1 + 2))
    assert 0 < plan["token_layers_to_run"] < plan["token_layers_asked"]
    assert plan["seconds"] > 0 and plan["peak_bytes"] > 0
    assert list(tmp_path.iterdir()) == []

    assert invoke(tiny, tmp_path / "out", *arguments).exit_code == 0
    again = invoke(tiny, tmp_path / "out", *arguments, "--dry-run")
    assert again.stdout.strip() == f"{plan['readings']} readings, all of them in the store"
    wider = invoke(tiny, tmp_path / "out", *arguments, "--layers", "2", "--dry-run", "--json")
    assert json.loads(wider.stdout)["found"] == plan["readings"]


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_work_of_years_is_refused_at_once_unless_it_is_meant(tiny, tmp_path, command):
    arguments = ("--nulls", "100000000", "--strength", "1", "--layers", "1-2")
    shown = invoke(tiny, tmp_path / "out", *arguments, command=command)
    assert shown.exit_code == 1
    assert f"{QUESTIONS * (1 + 1 + 100_000_000):,} readings" in shown.stderr and "--yes" in shown.stderr
    meant = invoke(tiny, tmp_path / "out", *arguments, "--yes", command=command)
    assert meant.exit_code == 1 and "one run holds at most 10000000 readings" in meant.stderr


def test_a_plan_is_the_runs_own(model, tmp_path):
    store = tmp_path / "cells.sqlite"
    plan = experiment_of(model, store=store, plan=True)
    assert isinstance(plan, ExperimentPlan) and not store.exists()
    seen = []
    result = experiment_of(model, store=store, progress=lambda what, done, total: seen.append((done, total)))
    assert seen[-1] == (plan.readings, plan.readings) and plan.readings == len(result.rows) + QUESTIONS
    assert experiment_of(model, store=store, plan=True).found == plan.readings
    both = introspect.run_experiments(
        model,
        [introspect.Protocol.parse(protocol_text(name)) for name in ("mine", "yours")],
        vectors=random_vectors((1, 2, 3)),
        strengths=[2.0],
        nulls=1,
        plan=True,
    )
    assert both.readings == 2 * plan.readings
    assert both.token_layers_to_run == plan.token_layers_to_run  # the same conversations


def test_more_than_an_hour_is_warned_of_unless_it_is_meant(model, monkeypatch):
    monkeypatch.setattr(experiment, "HOUR", 0.0)
    with pytest.warns(UserWarning, match=r"run_experiment: \d+ readings.*long=True") as caught:
        experiment_of(model)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment_of(model, long=True)


# What is kept, and when


def test_readings_are_kept_pass_by_pass_at_no_cost(model, tmp_path, monkeypatch):
    """Passes of some milliseconds: as many commits as a long run has in some minutes."""
    options = {"layers": introspect.layer_ranges(1, 3), "nulls": 30}
    whole = experiment_of(model, **options)
    cost = experiment_of(model, **options, plan=True).token_layers_to_run
    monkeypatch.setattr(experiment, "PASS_SECONDS", 0.002)
    assert experiment_of(model, **options, plan=True).token_layers_to_run <= 1.02 * cost
    store, committed = introspect.Store(tmp_path / "cells.sqlite"), []

    def tell(what, done, total):
        if not committed or done > committed[-1]:
            committed.append(done)
            assert len(store) >= done  # what is reported is in the store

    short = experiment_of(model, **options, store=store, progress=tell)
    assert len(committed) > 5  # one pass holds all of it otherwise
    for one, other in zip(short.rows, whole.rows, strict=True):
        assert one["injected"]["log_odds"] == pytest.approx(other["injected"]["log_odds"], abs=1e-9)


def test_the_work_done_never_falls_and_ends_with_the_total(model):
    told = []

    class Display:
        def __call__(self, what, done, total):
            pass

        def work(self, what, done, total):
            told.append((done, total))

    experiment_of(model, strength_unit="residual", strengths=[0.1, 0.2], progress=Display())
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done) and len(set(done)) > 5
    assert done[-1] == totals[-1] and all(one <= total for one, total in told)


# Results that add up


def rows(out):
    return [
        (row["concept"], row["strength"], row["first_layer"], row["question"], row["kind"], row["null_index"])
        for row in Result.load(out / "mine.json").rows
    ]


def test_runs_into_one_folder_add_up(tiny, tmp_path):
    out = tmp_path / "out"
    assert invoke(tiny, out, "--strength", "1", "--layers", "1-2", "--nulls", "2").exit_code == 0
    first = rows(out)
    assert len(first) == QUESTIONS * 3
    assert invoke(tiny, out, "--strength", "2", "--layers", "3", "--nulls", "0", "--questions", "own").exit_code == 0
    assert rows(out) == [*first, ("cat", 2.0, 3, "Noticed it?", "introspection", -1)]
    assert invoke(tiny, out, "--strength", "1", "--layers", "1-2", "--nulls", "3").exit_code == 0
    assert len(rows(out)) == len(set(rows(out))) == QUESTIONS * 4 + 1
    assert Result.load(out / "mine.json").settings["nulls"] == 3
    shown = CliRunner().invoke(app, ["report", str(out), "--json"])
    assert len(json.loads(shown.stdout)["protocols"][0]["detections"]) == 2


def test_rotations_of_another_seed_are_more_rotations(tiny, tmp_path):
    out = tmp_path / "out"
    for seed in ("0", "1", "0", "1"):
        assert invoke(tiny, out, "--strength", "1", "--layers", "1-2", "--nulls", "2", "--seed", seed).exit_code == 0
    result = Result.load(out / "mine.json")
    assert len(result.rows) == QUESTIONS * (1 + 2 + 2)
    (detection,) = result.detections()
    assert len(detection.shift.nulls) == 4 and len(set(detection.shift.nulls)) == 4


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("--dtype", "bfloat16"), {}, "dtype"),
        ((), {"model": "other"}, "model's hash"),
        ((), {"protocol": "changed/mine.json"}, "protocol's hash"),
        (("--fraction", "0.1"), {}, "strength_unit"),
    ],
)
def test_what_cannot_be_added_is_refused_before_anything_runs(tiny, tmp_path, arguments, options, named):
    (tiny / "changed").mkdir(exist_ok=True)
    (tiny / "changed" / "mine.json").write_text(protocol_text(question="Noticed that?"))
    out = tmp_path / "out"
    strength = ("--strength", "1") if "--fraction" not in arguments else ()
    common = ("--layers", "1-2", "--nulls", "1")
    assert invoke(tiny, out, *common, "--strength", "1").exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shown = invoke(tiny, out, *common, *strength, *arguments, **options)
    assert shown.exit_code == 1 and len(shown.stderr.splitlines()) == 1
    assert named in shown.stderr and "mine.json" in shown.stderr and "another folder" in shown.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_protocols_of_one_command_share_what_they_have_in_common(tiny, tmp_path):
    (tiny / "yours.json").write_text(protocol_text("yours", readouts={"divergence": True}))
    out = tmp_path / "out"
    given = ["run", tiny / "model", tiny / "mine.json", tiny / "yours.json", "--vector", tiny / "cat.gguf", "-o", out]
    given = [*map(str, given), "--strength", "1", "--layers", "1-2", "--nulls", "1"]
    plan = json.loads(CliRunner().invoke(app, [*given, "--dry-run", "--json"]).stdout)
    alone = plan["protocols"]["mine"]
    assert plan["readings"] == 2 * alone["readings"] == 2 * QUESTIONS * 3
    assert plan["token_layers_to_run"] == alone["token_layers_to_run"]  # the same conversations
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert done.stdout.index("mine") < done.stdout.index("yours")
    mine, yours = (Result.load(out / f"{name}.json") for name in ("mine", "yours"))
    assert "kl" in yours.rows[0]["injected"] and "kl" not in mine.rows[0]["injected"]
    for one, other in zip(mine.rows, yours.rows, strict=True):
        assert one["injected"]["log_odds"] == pytest.approx(other["injected"]["log_odds"], abs=1e-4)  # float32
    assert json.loads((out / "run.json").read_text())["finished"] == ["mine", "yours"]


def by_setting(rows):
    return sorted(rows, key=lambda row: (row["concept"], row["first_layer"], row["last_layer"], row["null_index"]))


def test_results_merge_by_setting_and_save_overwrites(model, tmp_path):
    narrow, wide = experiment_of(model, layers=[(1, 1)]), experiment_of(model, layers=[(1, 1), (2, 3)])
    assert by_setting(narrow.merged(wide).rows) == by_setting(wide.rows)  # the old ones come first
    assert wide.merged(narrow).rows == wide.rows
    other = introspect.run_experiment(
        model,
        introspect.Protocol.parse(protocol_text(question="Noticed that?")),
        vectors=random_vectors((1, 2, 3)),
        strengths=[2.0],
    )
    with pytest.raises(ValueError, match="protocol's hash"):
        wide.merged(other)
    wide.save(tmp_path / "mine.json")
    narrow.save(tmp_path / "mine.json")
    assert len(Result.load(tmp_path / "mine.json").rows) == len(narrow.rows)


# A run that ends early


def test_what_a_killed_run_has_finished_can_be_reported(tiny, model, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "PASS_SECONDS", 0.002)
    protocol = introspect.load_protocol(tiny / "mine.json")
    arguments = {
        "vectors": random_vectors((1, 2, 3)),
        "strengths": [2.0],
        "layers": introspect.layer_ranges(1, 3),
        "nulls": 30,
    }
    facts, described = runs.model_facts(model), runs.protocol_facts(protocol)
    settings = {"seed": 0, "nulls": 30, "strength_unit": "absolute"}
    runs.write_note(tmp_path, "sweep.json", facts, [described], settings)
    with pytest.raises(FileNotFoundError):
        runs.load_results(tmp_path)

    class Killed(BaseException):
        pass

    def tell(what, done, total):
        if done > total / 2:
            raise Killed

    with pytest.raises(Killed):
        introspect.run_experiment(model, protocol, **arguments, store=tmp_path / "cells.sqlite", progress=tell)
    (partial,) = runs.load_results(tmp_path)
    n_rows = QUESTIONS * 2 * 6 * (1 + 30)
    assert partial.settings["incomplete"] == {"done": len(partial.rows), "of": n_rows}
    assert n_rows / 3 < len(partial.rows) < n_rows

    whole = introspect.run_experiment(model, protocol, **arguments, store=tmp_path / "cells.sqlite")
    (complete,) = runs.load_results(tmp_path)
    assert "incomplete" not in complete.settings
    assert complete.rows == whole.rows
    expected = {json.dumps(row, sort_keys=True) for row in whole.rows}
    assert {json.dumps(row, sort_keys=True) for row in partial.rows} < expected
    assert complete.model == whole.model
    assert {name: complete.protocol[name] for name in whole.protocol} == whole.protocol
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "finished": [], "model": {}, "settings": {}, "protocols": []}',
        '{"schema": 1, "finished": [], "model": {"name": "m", "hash": "h", "dtype": "d"}, '
        '"settings": {"seed": 0, "strength_unit": "absolute", "nulls": 0}, "protocols": [{"name": "../../x"}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_note_is_named(tmp_path, note):
    (tmp_path / "run.json").write_text(note)
    introspect.Store(tmp_path / "cells.sqlite")
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 1 and len(shown.stderr.splitlines()) == 1 and "run.json" in shown.stderr
