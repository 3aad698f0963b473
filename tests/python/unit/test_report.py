import base64
import csv
import io
import json
import re

import pytest
import synthetic
import torch
from plotly.offline import get_plotlyjs
from rich.console import Console
from tiny_chat import write_tiny_chat

import introspect
import introspect.cli.experiment
from introspect import report
from introspect.experiments.results import Compared, Result
from introspect.plots import interactive
from introspect.report import page, sentences
from introspect.report import sections as report_tables
from introspect.report.page_verdict import overall


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


def page_of(results):
    """The page without the pictures that matplotlib draws, which take longer than all the rest."""
    return report.html(results, dict.fromkeys(report.drawings(results), b""))


def terminal(results, width):
    console = Console(width=width, file=io.StringIO())
    report.show(results, console)
    return console.file.getvalue()


def test_the_terminal_shows_every_number_of_the_table(folder):
    shown = terminal(report.load_folder(folder), 200)
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


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_fits_its_width(folder, width):
    shown = terminal(report.load_folder(folder), width)
    assert max(map(len, shown.splitlines())) <= width
    for expected in (
        "+0.60 [+0.40, +0.80]",
        "-0.20 to +0.20",
        "9th of 11, inside",
        "cat, 0.1 × residual norm, blocks 8–16",
    ):
        assert expected in shown  # whole: at 80 columns words were broken inside
    assert "Unclear." in shown


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


# What came out, first


def test_the_page_answers_its_question_before_anything_else(folder):
    page = report.write(folder).read_text().replace(get_plotlyjs(), "")
    body = page[page.index("<h1>") :]
    heading, word, table = body.index("notice an injected concept?"), body.index('<p class="word'), body.index("<table")
    assert heading < word < table
    found = overall(report.load_folder(folder))
    assert f'<p class="word {found.word}">{found.word}.</p>' in body
    assert json.loads((folder / "report.json").read_text())["verdict"]["word"] == found.word


def result_of(name, shifts, **more):
    data = synthetic.detection(name, shifts)
    data["protocol"] |= more
    return Result(data)


def test_protocols_that_agree_give_their_word_and_others_do_not():
    no = [result_of(name, {"cat": -1.0}) for name in ("no_info", "with_info")]
    assert overall(no).word == "no" and len(overall(no).reasons) == 2
    mixed = overall([no[0], result_of("with_info", {"cat": 5.0, "bread": 5.0})])
    assert mixed.word == "unclear" and len(mixed.reasons) == 2
    assert overall([Result(synthetic.sample())]).word == "unclear"
    reading = overall([Result(synthetic.sample()), Result(synthetic.content())])
    assert reading.word == overall([Result(synthetic.content())]).word


# The conversation and the settings

DEFINITION = {
    "turns": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "First <i>one</i> & two. Two again."},
        {"role": "assistant", "content": "{ }"},
        {"role": "user", "content": "Do you detect it?"},
        {"role": "assistant", "content": "The answer is"},
    ],
    "injected": [{"turn": 1, "text": "two"}, {"turn": 1, "text": "Two"}],
    "source": "own <words>",
    "controls": {"turns": [{"role": "user", "content": "$QUESTION"}], "injected": [0], "questions": ["Is ice hot?"]},
}


def test_the_conversation_is_on_the_page_with_the_injected_span_marked():
    page = page_of([result_of("mine", {"cat": 1.0}, definition=DEFINITION)])
    assert "First &lt;i&gt;one&lt;/i&gt; &amp; <mark>two</mark>. <mark>Two</mark> again." in page
    assert "Do you detect it?" in page and "own &lt;words&gt;" in page
    assert "<i>one</i>" not in page.replace(get_plotlyjs(), "")
    assert "asked in another conversation than this one" in page


def test_whole_messages_are_marked_and_the_question_is_the_users_last():
    result = result_of("mine", {"cat": 1.0}, definition={**DEFINITION, "injected": [1, 2]})
    turns = page.conversation(result)
    assert [turn["injected"] for turn in turns] == [False, True, True, False, False]
    assert [turn["question"] for turn in turns] == [False, False, False, True, False]
    assert turns[1]["pieces"] == [("First <i>one</i> & two. Two again.", True)]
    assert turns[0]["pieces"] == [] and turns[4]["prefix"]


def test_the_settings_say_what_the_unit_of_strength_means_and_where_controls_were_asked():
    result = result_of("mine", {"cat": 1.0})
    listed = dict(page.settings(result))
    assert "median" in listed["strength"] and listed["strength"].startswith("0.1 × residual norm")
    assert listed["steered blocks"] == "blocks 8–16 of 0 to 23"
    assert listed["control questions"].startswith("3 ")
    assert listed["random directions"].startswith("10 for each concept")
    result.settings |= {"controls": "with_info", "strength_unit": "absolute"}
    assert "with_info conversation" in dict(page.settings(result))["control questions"]
    assert "residual" not in dict(page.settings(result))["strength"]


def test_every_shipped_protocol_is_described_in_a_sentence():
    from introspect.experiments.run import MORE_PROTOCOLS, PROTOCOLS

    for name in PROTOCOLS + MORE_PROTOCOLS:
        said = page.describe(result_of(name, {"cat": 1.0}))
        assert said.endswith(".") and len(said) > 40, name


def test_a_result_holds_the_protocol_it_was_run_with(tmp_path):
    model = introspect.load_model(write_tiny_chat(tmp_path / "model"))
    vector = introspect.ControlVector("qwen2", {1: torch.ones(32)})
    protocol = introspect.Protocol.parse(
        json.dumps({"name": "mine", "turns": DEFINITION["turns"], "injected": DEFINITION["injected"]})
    )
    result = introspect.run_experiment(
        model, protocol, vectors={"cat": vector}, strengths=[1.0], layers=[(1, 1)], questions=[], nulls=1
    )
    assert [turn["question"] for turn in page.conversation(result)] == [False, False, False, True, False]
    assert introspect.Protocol.parse(json.dumps(result.protocol["definition"])).hash == protocol.hash


def test_the_conversation_of_a_shipped_protocol_is_known_by_its_hash():
    protocol = introspect.load_protocol("no_info")
    known = result_of("no_info", {"cat": 1.0}, hash=protocol.hash)
    assert [turn["injected"] for turn in page.conversation(known)] == [False, True, True, False, False]
    assert page.conversation(result_of("no_info", {"cat": 1.0}, hash="ab" * 32)) == []


# What breaks


NAN = float("nan")


def broken(result, which):
    """The result with NaN where ``which`` is true of a row: read with the injection."""
    for row in result.rows:
        if which(row):
            row["injected"] |= {"log_odds": NAN, "p_yes": NAN, "p_no": NAN}
            for token in row["injected"].get("tokens", []):
                token["log_prob"] = NAN
    return result


@pytest.mark.parametrize("data", [synthetic.detection, synthetic.content, synthetic.sample])
@pytest.mark.parametrize(
    "which",
    [
        lambda row: True,
        lambda row: row["kind"] == "introspection",
        lambda row: row["question"] == "Is ice hot?",
        lambda row: row["null_index"] in (3, 4),
        lambda row: row["concept"] == "cat" and row["null_index"] < 0,
    ],
    ids=["all", "own", "one control", "two random", "one concept"],
)
def test_numbers_that_are_not_finite_are_said_counted_and_never_a_traceback(data, which, tmp_path):
    result = broken(Result(data()), which)
    n = sum(map(which, result.rows))
    result.save(tmp_path / "x.json")
    results = report.load_folder(tmp_path)
    shown = terminal(results, 80)
    has_figures = result.protocol["read"] == "yes_no" or result.identifications()
    assert bool(report.figures(results)) == bool(has_figures)
    text = re.sub("<script>.*?</script>", "", page_of(results), flags=re.DOTALL)
    for one in (shown, text):
        assert not re.search(r"(?<![a-z])nan(?![a-z])", one, re.IGNORECASE)
        assert n == 0 or f"{n} of {len(result.rows)} readings are not finite" in " ".join(one.split())
    written = json.loads(json.dumps(report.as_dict(results), allow_nan=False))
    assert written["protocols"][0]["not_finite"] == n


def test_a_strength_that_breaks_the_text_is_said_to():
    result = Result(synthetic.detection())
    for row in result.rows:
        row["base"] |= {"p_yes": 0.5, "p_no": 0.4}
        row["injected"] |= {"p_yes": 0.3, "p_no": 0.1} if row["concept"] == "cat" else {"p_yes": 0.5, "p_no": 0.3}
    cat, bread = result.groups
    found = {d.setting: d for d in result.detections()}
    assert (found[cat].mass_base, found[cat].mass) == (pytest.approx(0.9), pytest.approx(0.4))
    assert found[cat].leaves_format and not found[bread].leaves_format
    table = report_tables.detection_table(result)
    column = table.header.index("yes + no")
    assert [row[column] for row in table.rows] == ["90% → 40% ⚠", "90% → 80%"] and table.flagged == [True, False]
    assert "the strength breaks the text" in terminal([result], 80)


def test_a_text_that_loops_is_said_to_be_broken():
    looped = "the beautiful picture of " * 6
    assert sentences.repeats_itself(looped)
    assert not sentences.repeats_itself("A cat sat on the mat, and the mat was where a cat had sat the day before it.")
    result = Result(synthetic.sample())
    result.rows[0]["injected"]["text"] = looped
    assert sentences.texts(result)[0]["broken"]
    result.rows[0]["base"]["text"] = looped  # the strength is not what breaks it
    assert not sentences.texts(result)[0]["broken"]


def test_an_interrupted_run_is_said_to_be_incomplete():
    result = Result(synthetic.detection())
    result.settings["incomplete"] = {"done": 70, "of": 140}
    said = "Incomplete: 70 of 140 readings are done."
    assert said in page_of([result])
    assert said in " ".join(terminal([result], 80).split())
    assert report.as_dict([result])["protocols"][0]["incomplete"] == {"done": 70, "of": 140}
    del result.settings["incomplete"]
    assert "Incomplete" not in terminal([result], 80)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/introspect-escaped", "a/b", "..", "report", "", "a\x00b"])
def test_no_name_of_a_result_leads_out_of_its_folder(name, tmp_path):
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    data = synthetic.detection(name)
    (inside / "x.json").write_text(json.dumps(data))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="the protocol's name becomes a file name"):
        report.write(inside)
    assert sorted(tmp_path.rglob("*")) == before


def test_run_and_report_refuse_the_same_names(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"name": "../up", "turns": DEFINITION["turns"], "injected": [1]}))
    with pytest.raises(ValueError, match="the protocol's name becomes a file name"):
        introspect.cli.experiment.load_protocols([str(file)])


# Tables


def test_no_z_of_fewer_than_five_random_directions():
    for n, expected in ((4, "–"), (5, "+0.9")):
        nulls = (0.0, 1.0, 2.0, 3.0, 4.0)[:n]
        # five: mean 2, standard deviation sqrt(10 / 4)
        assert report_tables._null_cells(Compared(2.0 + 0.9 * 2.5**0.5, nulls))[1] == expected


def test_columns_without_a_value_are_not_there():
    data = synthetic.detection()
    data["rows"] = [row for row in data["rows"] if row["kind"] == "introspection"]
    table = report_tables.detection_table(Result(data))
    assert table.header == ["injected", "log-odds", "p(yes)", "yes + no", "shift"]
    assert not any(cell == "–" for row in table.rows for cell in row)


def test_two_results_of_one_protocol_have_pictures_of_their_own(tmp_path):
    for i, shift in enumerate((1.0, 2.0)):
        result_of("no_info", {"cat": shift}).save(tmp_path / f"{i}.json")
    page = report.write(tmp_path).read_text()
    assert (tmp_path / "no_info.png").exists() and (tmp_path / "no_info-2.png").exists()
    assert page.count('id="no_info"') == page.count('id="no_info-2"') == 1


# Pictures on the page


def test_no_legend_says_anything_twice_and_no_panel_is_empty(folder):
    for name, drawing in report.drawings(report.load_folder(folder)).items():
        names = [swatch.name for swatch in drawing.legend]
        assert len(names) == len(set(names)), name
        for panel in drawing.panels:
            assert any(trace.get("x") or trace.get("z") for trace in panel.traces), name


def test_colours_of_the_page_follow_its_theme(folder):
    page = page_of(report.load_folder(folder)).replace(get_plotlyjs(), "")
    assert "prefers-color-scheme: dark" in page
    themes = json.loads(re.search(r"const THEMES = (.*);", page).group(1))
    assert themes["light"].keys() < themes["dark"].keys()
    used = set(re.findall(r'"(@\w+)"', page)) - themes["light"].keys()
    assert used == set()  # a name without a colour would be drawn in black


def test_texts_in_plots_are_text():
    concept = "<b>x</b> & </script>"
    result = result_of("mine", {concept: 1.0})
    drawn = interactive.overview_drawing([result])
    (label,) = drawn.panels[0].y["ticktext"]
    assert "&lt;b&gt;x&lt;/b&gt; &amp;" in label.replace("<br>", " ")
    assert "<b>x</b>" not in page_of([result]).replace(get_plotlyjs(), "")
