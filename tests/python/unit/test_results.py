import json
import math
import statistics

import pytest
import synthetic

from introspect.experiments.results import Compared, Result

SUMMARY_COLUMNS = [
    "concept",
    "strength",
    "first_layer",
    "last_layer",
    "question",
    "kind",
    "log_odds_base",
    "log_odds",
    "p_yes_base",
    "p_yes",
    "p_no_base",
    "p_no",
]


def test_json_round_trip_is_identical():
    text = json.dumps(synthetic.content())
    assert json.loads(Result.from_json(text).to_json()) == json.loads(text)


def test_save_and_load(tmp_path):
    result = Result(synthetic.detection())
    result.save(tmp_path / "with_info.json")
    assert Result.load(tmp_path / "with_info.json").rows == result.rows
    assert [p.name for p in tmp_path.iterdir()] == ["with_info.json"]


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"schema": 2}', '{"schema": 1, "rows": []}'])
def test_anything_else_is_a_value_error_that_names_the_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        Result.load(tmp_path / "x.json")


def test_null_in_json_is_nan_in_python_and_null_again():
    data = synthetic.detection()
    data["rows"][0]["injected"]["log_odds"] = None
    result = Result(data)
    assert math.isnan(result.to_pandas().log_odds[0])
    assert json.loads(result.to_json())["rows"][0]["injected"]["log_odds"] is None


def test_table_has_one_row_a_reading_and_the_fixed_columns():
    data = synthetic.detection()
    table = Result(data).to_pandas()
    assert len(table) == len(data["rows"])
    assert set(SUMMARY_COLUMNS) <= set(table.columns)
    assert not {"token", "text"} & set(table.columns)
    own = table[(table.concept == "cat") & (table.kind == "introspection")].iloc[0]
    assert (own.log_odds_base, own.log_odds) == (1.7, 2.7)


def test_content_table_shows_the_rows_own_concept():
    table = Result(synthetic.content()).to_pandas()
    own = table[table.kind == "introspection"].set_index("concept")
    assert list(own.token) == ["cat", "bread"]
    assert list(own.spaced_token) == [" cat", " bread"]
    assert list(own["rank"]) == [3, 3]
    assert list(own.spaced_rank_base) == [701, 701]
    assert list(own.log_prob - own.log_prob_base) == [5.0, 5.0]


def test_token_table_shows_every_concept():
    table = Result(synthetic.content()).tokens_to_pandas()
    cat = table[(table.concept == "cat") & (table.kind == "introspection")]
    assert list(cat.token) == ["cat", " cat", "bread", " bread"]
    assert list(cat.token_concept) == ["cat", "cat", "bread", "bread"]
    assert list(cat.log_prob - cat.log_prob_base) == [5.0, 5.0, 0.5, 0.5]


def test_sample_table_holds_both_texts():
    table = Result(synthetic.sample()).to_pandas()
    assert (table.text_base[0], table.text[0]) == (" the weather.", " cats, and <b>naps</b>.")


def test_detection_statistics():
    cat, bread = Result(synthetic.detection()).detections()
    assert cat.setting == ("cat", 0.1, 8, 16)
    assert cat.shift.value == pytest.approx(1.0)
    assert cat.control_mean.value == pytest.approx(0.4)
    assert cat.control_std == pytest.approx(0.2)
    assert cat.corrected.value == pytest.approx(0.6)
    halves = [null / 2 for null in synthetic.NULL_SHIFTS]
    assert cat.corrected.nulls == pytest.approx(halves)
    assert cat.corrected.null_std == pytest.approx(statistics.stdev(halves))
    assert cat.corrected.z == pytest.approx((0.6 - statistics.fmean(halves)) / statistics.stdev(halves))
    assert (cat.corrected.rank, cat.corrected.inside) == (1, False)
    assert bread.corrected.value == pytest.approx(-0.1)
    # -0.1 less the nulls' halves: 8 of 10 are at or above -0.1
    assert (bread.corrected.rank, bread.corrected.inside) == (9, True)


def test_without_controls_the_shift_itself_is_the_headline():
    data = synthetic.detection()
    data["rows"] = [row for row in data["rows"] if row["question_kind"] != "control"]
    cat = Result(data).detections()[0]
    assert cat.corrected is None and cat.headline is cat.shift
    assert math.isnan(cat.control_std)


def test_identification_statistics():
    cat, _ = Result(synthetic.content()).identifications()
    assert (cat.token, cat.rank_base, cat.rank) == ("cat", 700, 3)
    assert (cat.spaced_token, cat.spaced_rank_base, cat.spaced_rank) == (" cat", 701, 4)
    assert cat.gain.value == pytest.approx(5.0)
    assert cat.gain.nulls == pytest.approx(synthetic.NULL_SHIFTS)
    assert cat.others_gain == pytest.approx(0.5)
    assert cat.gain.rank == 1


def test_strengths_and_layers_are_settings_of_their_own():
    data = synthetic.detection()
    weaker = [{**row, "strength": 0.05} for row in data["rows"]]
    data["rows"] += weaker
    assert [d.setting.strength for d in Result(data).detections()] == [0.1, 0.1, 0.05, 0.05]


def test_no_nulls_give_no_band():
    alone = Compared(1.0, ())
    assert (alone.rank, alone.inside) == (1, False)
    assert math.isnan(alone.null_mean) and math.isnan(alone.null_std) and math.isnan(alone.z)


def test_a_tie_with_a_null_counts_against_the_concept():
    assert Compared(1.0, (1.0, 0.0)).rank == 2


def test_the_corrected_shift_has_an_interval_over_questions():
    cat, bread = Result(synthetic.detection()).detections()
    for detection in (cat, bread):
        assert detection.effect.value == pytest.approx(detection.corrected.value)
        assert detection.effect.interval.low < detection.effect.value < detection.effect.interval.high
    data = synthetic.detection()
    data["rows"] = [row for row in data["rows"] if row["question_kind"] != "control"]
    assert Result(data).detections()[0].effect is None


def test_numbers_that_are_not_finite_have_no_band():
    assert Compared(math.nan, (1.0, 2.0)).band is None
    assert math.isnan(Compared(1.0, (math.nan, 2.0)).z)
