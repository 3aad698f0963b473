"""Pictures of lenses, attention and localisation: the numbers drawn are those of the rows."""

import json

import pytest
import synthetic
from scipy.stats import binomtest

from introspect import plots, report
from introspect.experiments.results import Result
from introspect.plots import interactive
from introspect.plots.readings import attention_maps, lenses

LAYERS, HEADS = 6, 4


def lens_of(shift):
    return {"log_odds": [shift + layer for layer in range(LAYERS)], "p_yes": [0.1] * LAYERS, "p_no": [0.1] * LAYERS}


def attention_of(shift):
    return [
        [0.01 * layer + (shift if (layer, head) == (3, 2) else 0.0) for head in range(HEADS)] for layer in range(LAYERS)
    ]


@pytest.fixture
def result():
    """Lenses rise by a nat a layer, and an injection moves each layer by as much as the last; the controls stay."""
    data = synthetic.detection()
    for row in data["rows"]:
        moved = row["injected"]["log_odds"] - row["base"]["log_odds"]
        moved = 0.0 if row["question_kind"] == "control" else moved
        row["base"] |= {"lens": lens_of(-2.0), "attention": attention_of(0.0)}
        row["injected"] |= {"lens": lens_of(-2.0 + moved), "attention": attention_of(moved)}
    return Result(data)


def test_lenses_are_the_rows_layers(result):
    cat, bread = lenses(result)
    assert cat.name.startswith("cat") and cat.steered == (8, 16)
    assert cat.base == {layer: -2.0 + layer for layer in range(LAYERS)}
    assert cat.injected == pytest.approx({layer: -1.0 + layer for layer in range(LAYERS)})  # cat shifts by a nat
    assert bread.injected[5] == pytest.approx(3.3)
    assert cat.control == cat.base
    assert [null[0] for null in cat.nulls] == pytest.approx([-2.0 + null for null in synthetic.NULL_SHIFTS])


def test_attention_is_what_the_injection_changes_beside_the_most_that_a_rotation_changes(result):
    maps = attention_maps(result)
    assert [name.partition(",")[0] for name in maps] == ["cat", "cat", "bread", "bread"]
    own, random = list(maps.values())[:2]
    assert own[3][2] == pytest.approx(1.0) and own[0][0] == 0.0
    assert random[3][2] == pytest.approx(max(synthetic.NULL_SHIFTS, key=abs))


def test_a_content_report_shows_its_tokens_lens():
    data = synthetic.content()
    for row in data["rows"]:
        for side in ("base", "injected"):
            tokens = row[side]["tokens"]
            row[side]["lens"] = {"log_odds": [0.0, 0.0], "log_probs": [[-20.0, t["log_prob"]] for t in tokens]}
    cat, _ = lenses(Result(data))
    assert (cat.base[1], cat.injected[1], cat.control) == (-8.0, -3.0, {})


def test_what_is_not_finite_is_a_gap(result):
    for row in result.rows:
        row["injected"]["lens"]["log_odds"][2] = None
    assert lenses(result)[0].injected[2] != lenses(result)[0].injected[2]
    assert plots.lens(result) is not None
    json.loads(interactive.lens(result).to_json(), parse_constant=lambda name: pytest.fail(name))


def test_they_stand_on_the_page_and_in_the_folder(result, tmp_path):
    result.save(tmp_path / "with_info.json")
    page = report.write(tmp_path).read_text()
    for suffix in ("lens", "attention"):
        assert (tmp_path / f"with_info_{suffix}.png").exists() and f'id="with_info_{suffix}"' in page


def test_without_such_readings_there_are_no_pictures():
    plain = Result(synthetic.detection())
    for draw in (plots.lens, plots.attention, plots.localised, interactive.lens, interactive.attention):
        assert draw(plain) is None


def test_localisation_is_drawn_with_its_level_of_chance():
    data = synthetic.detection(shifts={"cat": 1.0})
    data["protocol"]["answers"] = ["1", "2", "3"]
    data["rows"] = [row for row in data["rows"] if row["kind"] == "introspection"] * 3
    named = [0, 1, 1]  # two of three are right
    for place, row in enumerate(data["rows"]):
        answers = [{"token": str(i + 1), "id": i, "log_prob": -2.0, "rank": 5} for i in range(3)]
        risen = [{**one, "log_prob": -1.0 if i == named[place] else -3.0} for i, one in enumerate(answers)]
        row = data["rows"][place] = {**row, "place": place}
        row["base"], row["injected"] = {**row["base"], "answers": answers}, {**row["injected"], "answers": risen}
    title = plots.localised(Result(data)).get_suptitle()
    interval = binomtest(2, 3).proportion_ci(method="exact")  # as everywhere in a report: Clopper & Pearson 1934
    assert f"67% ({100 * interval.low:.0f} to {100 * interval.high:.0f}%) right, chance 33%" in title
    assert "67% (9 to 99%)" in title
