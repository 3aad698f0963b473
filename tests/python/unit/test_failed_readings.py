"""Numbers that are not finite: an error where nothing was injected, a failed reading where something was."""

import json
import math
import sqlite3
import statistics
import warnings

import pytest
import synthetic
import torch
from looped import CONTROLS, protocol
from tiny_chat import overflowing, write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import plots, report
from introspect.cli.app import app
from introspect.experiments.results import Result

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


def run(model, vectors, given=None, **options):
    options = {"strengths": [2.0], "layers": [LAYERS], "nulls": 2, **options}
    return introspect.run_experiment(model, given or protocol(controls=CONTROLS), vectors=vectors, **options)


# Without an injection


@pytest.mark.parametrize("options", [{}, {"strength_unit": "residual", "strengths": [0.1]}, {"control_filter": 0.0}])
@pytest.mark.parametrize("block", [0, 2])
def test_an_overflow_without_injection_names_the_block_and_the_way_out(folder, vectors, tmp_path, block, options):
    broken = overflowing(introspect.load_model(folder, dtype=torch.float16), block)
    store = tmp_path / "cells.sqlite"
    with pytest.raises(introspect.Error, match=rf"not finite after block {block} .*bfloat16 or float32"):
        run(broken, vectors, store=store, **options)
    assert len(introspect.Store(store)) == 0


def test_nothing_is_sampled_from_numbers_that_are_not_finite(folder, vectors):
    broken = overflowing(introspect.load_model(folder, dtype=torch.float16), 1)
    given = protocol(read="sample", sampling={"max_new_tokens": 3, "temperature": 1.0})
    with pytest.raises(introspect.Error, match="block 1"):
        run(broken, vectors, given)


def test_estimates_name_the_block_as_well(folder, vectors):
    broken = overflowing(introspect.load_model(folder, dtype=torch.float16), 1)
    with pytest.raises(introspect.Error, match=r"estimate_layers.*block 1"):
        introspect.estimate_ranges(broken, protocol(), vectors=vectors)


# With one


@pytest.mark.parametrize("given", ["yes_no", "content", "sample"])
def test_a_setting_that_overflows_is_kept_as_failed_and_averaged_nowhere(model, vectors, tmp_path, given):
    given = protocol(controls=CONTROLS, read=given)
    store = tmp_path / "cells.sqlite"
    with pytest.warns(UserWarning, match=r"'cat' at strength 1e\+39 in blocks 1 to 2 \(4 of 4 readings\).*finite"):
        result = run(model, vectors, given, strengths=[2.0, 1e39], store=store)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*finite")
        alone = run(model, vectors, given)
    table = result.to_pandas()
    assert list(table.failed) == list(table.strength == 1e39)
    fine = [d for d in result.detections() if d.setting.strength == 2.0]
    for ours, theirs in zip(fine, alone.detections(), strict=True):
        assert ours.corrected.value == pytest.approx(theirs.corrected.value, abs=1e-5)
    for detection in result.detections():
        broken = detection.setting.strength == 1e39
        assert math.isnan(detection.shift.value) == broken
        assert detection.n_failed == (4 if broken else 0)
    assert {setting.strength: counts for setting, counts in result.failures().items()} == {1e39: (12, 12)}
    words = {line.split()[-1] for line in result.summary().splitlines() if line.startswith(("cat", "bread"))}
    assert given.read == "sample" or "failed" in words
    assert "24 of 24 readings in 2 settings are not finite" in result.summary()
    stored = introspect.Store(store).to_pandas()
    assert list(stored.failed) == list(stored.strength == 1e39)
    again = run(model, vectors, given, strengths=[2.0, 1e39], store=store)  # from the store
    assert list(again.to_pandas().failed) == list(table.failed)


def test_when_everything_failed_the_word_is_failed(model, vectors):
    with pytest.warns(UserWarning, match="finite"):
        result = run(model, vectors, strengths=[1e39])
    assert result.verdict().word == "failed"
    assert "failed" in repr(result)


def broken(data, which):
    """The same result with readings that JSON has no number for."""
    for row in data["rows"]:
        if not which(row):
            continue
        for name in ("log_odds", "p_yes", "p_no"):
            row["injected"][name] = None
        for token in row["injected"].get("tokens") or []:
            token["log_prob"], token["rank"] = None, 1
    return Result(data)


WHICH = {
    "everything": lambda row: True,
    "the concept": lambda row: row["kind"] == "introspection" and row["concept"] == "cat",
    "a control": lambda row: row["kind"] == "control" and row["question"] == "Is ice hot?",
    "rotations": lambda row: row["null_index"] in (3, 4),
    "the controls of one rotation": lambda row: row["null_index"] == 3 and row["question_kind"] == "control",
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("made", [synthetic.detection, synthetic.content, synthetic.sample])
def test_failed_readings_of_a_file_are_counted_shown_and_break_nothing(tmp_path, made, which):
    result = broken(made(), WHICH[which])
    n = sum(WHICH[which](row) for row in made()["rows"])
    assert sum(count for count, _ in result.failures().values()) == n == result.to_pandas().failed.sum()
    result.save(tmp_path / f"{result.protocol['name']}.json")
    assert result.verdict().word in ("yes", "unclear", "no", "failed")
    assert result.summary() and repr(result)
    for draw in (plots.overview, plots.shifts, plots.content, plots.identified):
        if draw is plots.overview:
            draw([result])
        elif result.protocol["read"] == "yes_no" or draw is not plots.shifts:
            draw(result)
    report.show([result])
    assert json.loads(json.dumps(report.as_dict([result]), allow_nan=False))
    if which == "the concept":
        assert report.write(tmp_path).exists()


def test_the_readings_that_are_left_are_averaged():
    data = synthetic.detection()
    result = broken(data, WHICH["a control"])
    cat, _ = result.detections()
    assert cat.control_mean.value == pytest.approx(statistics.fmean([0.2, 0.4]))
    assert cat.n_controls == 2 and cat.n_failed == 1
    cat, _ = broken(synthetic.detection(), WHICH["rotations"]).detections()
    left = [null for k, null in enumerate(synthetic.NULL_SHIFTS) if k not in (3, 4)]
    assert cat.shift.nulls == pytest.approx(left)
    assert cat.shift.n_failed == 2
    assert cat.shift.null_mean == pytest.approx(statistics.fmean(left))


def test_a_sweep_with_failed_settings_names_the_best_of_the_others():
    data = synthetic.sweep(
        ["cat"],
        (0.1, 0.2),
        [(i, j) for i in range(2, 8) for j in range(i, 8)],
        lambda concept, strength, first, last: (3.0 if (first, last) == (2, 5) else 0.1, 0.0),
        lambda k, strength, first, last: (0.1 * k - 0.4, 0.0),
    )
    result = broken(data, lambda row: row["strength"] == 0.2)
    from introspect.experiments.sweeps import sweep_bests

    assert sweep_bests(result)["cat"].setting == ("cat", 0.1, 2, 5)
    assert plots.range_maps(result) is not None
    assert sum(count for count, _ in result.failures().values()) == len(data["rows"]) // 2


def test_a_localisation_counts_what_failed():
    rows = []
    for place in range(3):
        for k in range(2):
            values = [-1.0, -2.0, -3.0]
            values[place], values[0] = values[0], values[place]
            answers = [{"token": t, "id": i, "log_prob": values[i], "rank": 1} for i, t in enumerate("ABC")]
            base = [{**one, "log_prob": -2.0} for one in answers]
            row = synthetic.row(
                "cat", "introspection", "Which?", "introspection", synthetic.side(0.0), synthetic.side(0.0)
            )
            row = {**row, "strength": 0.1 * (k + 1), "place": place}
            row["base"] = {**row["base"], "answers": base}
            row["injected"] = {**row["injected"], "answers": answers}
            rows.append(row)
    data = synthetic.result("localisation", "yes_no", rows)
    data["protocol"]["answers"] = ["A", "B", "C"]
    for answer in rows[1]["injected"]["answers"]:
        answer["log_prob"] = None
    rows[1]["injected"]["log_odds"] = None
    found = Result(data).localisation()
    assert found.n_failed == 1
    assert found.corrected.sum() == 5
    assert Result(data).summary()
    assert plots.localised(Result(data)) is not None
    for row in rows:
        row["injected"]["log_odds"] = None
        for answer in row["injected"]["answers"]:
            answer["log_prob"] = None
    found = Result(data).localisation()
    assert found.n_failed == 6 and math.isnan(found.accuracy)
    assert Result(data).verdict().word == "failed"
    assert plots.localised(Result(data)) is None


def test_not_a_number_in_a_store_is_a_failed_reading(model, vectors, tmp_path):
    store = tmp_path / "cells.sqlite"
    run(model, vectors, store=store)
    with sqlite3.connect(store) as database:
        database.execute(
            "UPDATE cells SET value = json_set(value, '$.log_odds', NULL, '$.p_yes', NULL) "
            "WHERE kind = 'introspection' AND concept = 'cat'"
        )
    with pytest.warns(UserWarning, match="'cat' .*1 of 4"):
        result = run(model, vectors, store=store)
    assert result.to_pandas().failed.sum() == 1
    assert math.isnan(result.detections()[0].shift.value)
    assert introspect.Store(store).to_pandas().failed.sum() == 1


def test_the_command_line_shows_what_failed_and_ends_well(folder, vectors, tmp_path):
    vector, given = tmp_path / "cat.gguf", tmp_path / "mine.json"
    vectors["cat"].export_gguf(vector)
    given.write_text(protocol(controls=CONTROLS).to_json())
    command = ["run", folder, given, "--vector", vector, "--strength", "1e39", "--nulls", "2", "-o", tmp_path / "out"]
    for _ in range(2):  # and again, from the store
        shown = CliRunner().invoke(app, [str(part) for part in command])
        assert shown.exit_code == 0, shown.output
        assert "finite" in shown.output
    assert CliRunner().invoke(app, ["report", str(tmp_path / "out")]).exit_code == 0
