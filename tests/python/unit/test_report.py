import base64
import csv
import io
import json
import re

import pytest
import synthetic
from plotly.offline import get_plotlyjs
from rich.console import Console

from introspect import report, sentences
from introspect.results import Result


@pytest.fixture
def folder(tmp_path):
    data = [synthetic.detection(), synthetic.detection("no_info"), synthetic.content(), synthetic.sample()]
    for one in data:
        (tmp_path / f"{one['protocol']['name']}.json").write_text(json.dumps(one))
    return tmp_path


def test_results_come_in_the_order_of_the_article(folder):
    names = [result.protocol["name"] for result in report.load_folder(folder)]
    assert names == ["no_info", "with_info", "content_report", "top_of_mind"]


def test_writes_everything_and_twice_is_the_same(folder):
    page = report.write(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"report.html", "report.json", "report.csv", "overview.png", "with_info.png", "content_report.png"} <= set(
        first
    )
    assert page == folder / "report.html"
    report.write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_the_page_needs_nothing_from_outside(folder):
    page = report.write(folder).read_text()
    library = get_plotlyjs()
    assert page.count(library) == 1
    page = page.replace(library, "")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.findall(r"url\(|@import|https?:", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4  # the overview, two detections, one content report
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_text_of_the_model_is_escaped(folder):
    page = report.write(folder).read_text()
    assert "cats, and &lt;b&gt;naps&lt;/b&gt;." in page
    assert "<b>naps" not in page


def test_csv_has_a_line_a_reading(folder):
    report.write(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    assert len(rows) == sum(len(result.rows) for result in report.load_folder(folder))
    cat = next(
        r for r in rows if r["protocol"] == "with_info" and r["concept"] == "cat" and r["kind"] == "introspection"
    )
    assert (float(cat["log_odds_base"]), float(cat["log_odds"])) == (1.7, 2.7)


def test_json_holds_the_statistics(folder):
    report.write(folder)
    protocols = {p["protocol"]["name"]: p for p in json.loads((folder / "report.json").read_text())["protocols"]}
    cat = protocols["with_info"]["detections"][0]
    assert cat["concept"] == "cat"
    assert cat["corrected"]["value"] == pytest.approx(0.6)
    assert (cat["corrected"]["rank"], cat["corrected"]["of"]) == (1, 11)
    assert protocols["content_report"]["identifications"][0]["rank"] == 3
    text = protocols["top_of_mind"]["texts"][0]
    assert (text["injected"], text["random"]) == (" cats, and <b>naps</b>.", " the sky.")


def test_what_is_inside_the_band_is_said_to_be_inside():
    cat, bread = Result(synthetic.detection()).detections()
    assert "inside the random band (9th of 11)" in report.detection_verdict(bread)
    assert "not told apart from a random direction" in report.detection_verdict(bread)
    assert "inside" not in report.detection_verdict(cat)
    assert (
        "above all 10 random directions (1st of 11; chance alone does this once in 11 times)"
        in report.detection_verdict(cat)
    )


def test_the_summary_counts_and_says_what_chance_gives():
    results = [
        Result(synthetic.detection()),
        Result(synthetic.detection("no_info", {"cat": -2.0})),
        Result(synthetic.content()),
    ]
    detection, identification = report.summary(results)
    # with_info: cat above, bread inside; no_info: cat below. Ten nulls each, so chance gives n / 11 on each side
    assert "above all random rotations in 1, below all in 1 and inside their range in 1 of 3" in detection
    assert "(chance alone: 0.3 above, 0.3 below)" in detection
    assert "above all random rotations in 2, below all in 0 and inside their range in 0 of 2" in identification
    assert "(chance alone: 0.2 above, 0.2 below)" in identification


def test_without_nulls_nothing_is_claimed():
    data = synthetic.detection()
    data["rows"] = [row for row in data["rows"] if row["kind"] != "random"]
    assert "says nothing yet" in report.detection_verdict(Result(data).detections()[0])


def test_a_broken_model_is_said_to_be_broken(tmp_path):
    data = synthetic.detection(shifts={"cat": float("nan")})
    Result(data).save(tmp_path / "with_info.json")
    report.write(tmp_path)
    verdict = json.loads((tmp_path / "report.json").read_text())["protocols"][0]["detections"][0]["verdict"]
    assert "no finite number" in verdict


def test_the_terminal_shows_every_number_of_the_table(folder):
    console = Console(width=200, file=io.StringIO())
    report.show(report.load_folder(folder), console)
    shown = console.file.getvalue()
    for expected in (
        "+1.70 → +2.70",
        "+0.40 [+0.20, +0.60]",
        "+0.60 [+0.40, +0.80]",
        "700 → 3",
        "701 → 4",
        "+5.00",
        "9th of 11, inside",
        "<b>naps</b>",
    ):
        assert expected in shown


@pytest.mark.parametrize(
    ("n", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st")]
)
def test_ordinals(n, text):
    assert sentences.ordinal(n) == text


def test_two_models_do_not_share_a_report(folder):
    other = synthetic.detection("lorem_ipsum")
    other["model"]["name"] = "smollm2-135m-instruct"
    (folder / "lorem_ipsum.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"qwen2\.5-coder-0\.5b-instruct, smollm2-135m-instruct"):
        report.write(folder)


def test_an_empty_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
