"""Sweeps: what is varied, what the best of many settings is worth, their pictures and page, and the command."""

import json
import math
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import synthetic
import torch
from matplotlib import image
from plotly.offline import get_plotlyjs
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import plots, report
from introspect.cli.app import app
from introspect.experiments.results import Compared, Result, Setting
from introspect.experiments.sweeps import curves, furthest, is_sweep, range_grids
from introspect.plots import interactive
from introspect.plots.content import answers
from introspect.progress import duration
from introspect.report.sections import detection_table

RANGES = [(i, j) for i in range(1, 8) for j in range(i, 8)]


def swept(strengths=(0.1,), ranges=RANGES, peak=(2, 5), height=3.0):
    """ "cat" notices at one range only, "bread" nowhere; the rotations wander."""
    rng = np.random.default_rng(0)

    def shift(concept, strength, first, last):
        noticed = height * strength if concept == "cat" and (first, last) == peak else 0.0
        return 0.05 * rng.normal() + noticed, 0.0

    def noise(k, strength, first, last):
        return 0.05 * rng.normal(), 0.0

    return Result(synthetic.sweep(["cat", "bread"], strengths, ranges, shift, noise, n_layers=8))


def own_question(result):
    """The result without its control questions: curves are one panel wide."""
    result.rows[:] = [row for row in result.rows if row["question_kind"] == "introspection"]
    return result


# What is varied


def test_layer_ranges_are_the_articles():
    assert len(introspect.layer_ranges(1, 63)) == 2016  # the article: 0 < i <= j < 64
    assert len(introspect.layer_ranges(1, 29)) == 435
    assert introspect.layer_ranges(2, 4) == [(2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4)]
    assert introspect.layer_ranges(2, 4, max_width=1) == [(2, 2), (3, 3), (4, 4)]
    assert introspect.layer_ranges(0, 5, min_width=2, max_width=4, step=2) == [(0, 1), (0, 3), (2, 3), (2, 5), (4, 5)]


@pytest.mark.parametrize("bad", [{"min_width": 4}, {"step": 0}, {"min_width": 0}, {"max_width": 0}])
def test_no_range_is_an_error(bad):
    with pytest.raises(ValueError, match="layer_ranges"):
        introspect.layer_ranges(2, 4, **bad)


def test_a_sweep_is_told_from_a_few_settings_and_by_what_varies():
    assert not is_sweep(Result(synthetic.detection()))
    ranges = swept()
    assert is_sweep(ranges)
    assert [grid.name for grid in range_grids(ranges)] == ["cat, 0.1 × residual norm", "bread, 0.1 × residual norm"]
    assert set(range_grids(ranges)[0].cells) == set(RANGES)
    assert [len(curve.xs) for curve in curves(ranges, "layer")] == [7, 7]  # of single blocks; the map shows the others
    assert curves(ranges, "strength") == []
    strengths = swept(strengths=(0.2, 0.05, 0.1), ranges=[(2, 5)])
    assert [curve.xs for curve in curves(strengths, "strength")] == [[0.05, 0.1, 0.2]] * 2
    assert range_grids(strengths) == [] and curves(strengths, "layer") == []


# What the best of many is worth


def test_the_furthest_is_standardised_with_its_rotations():
    settings = [Setting("cat", 1.0, 1, 1), Setting("cat", 1.0, 2, 2)]
    compared = [Compared(3.0, (1.0, 2.0)), Compared(10.0, (0.0, 20.0))]
    best = furthest(zip(settings, compared, strict=True))
    one, two = (statistics.stdev((c.value, *c.nulls)) for c in compared)
    assert best.setting == settings[0] and best.value == 3.0 and best.n_settings == 2
    assert best.place.value == pytest.approx((3.0 - 2.0) / one)
    # each rotation at its own best setting: (1 - 2) / one against (0 - 10) / two, and 0 against (20 - 10) / two
    assert best.place.nulls == pytest.approx((-1.0 / one, 10.0 / two))


def test_the_best_of_noise_is_first_as_often_as_any_of_its_rotations():
    """Exchangeable values: the concept is first among n + 1 in one of n + 1 cases, whatever the number of settings."""
    rng = np.random.default_rng(1)
    first, trials, n = 0, 2000, 4
    for _ in range(trials):
        common = rng.normal(size=n + 1)  # settings are alike, as neighbouring ranges are
        values = [common + rng.normal(size=n + 1) for _ in range(6)]
        listed = [(Setting("cat", 1.0, k, k), Compared(v[0], tuple(v[1:]))) for k, v in enumerate(values)]
        first += furthest(listed).place.rank == 1
    standard_error = math.sqrt(1 / 5 * 4 / 5 / trials)
    assert abs(first / trials - 1 / 5) < 4 * standard_error


def test_an_effect_at_one_range_is_found_and_noise_is_not():
    cat, bread = (report.sweep_verdict(swept(), concept) for concept in ("cat", "bread"))
    assert "stands out most at 0.1 × residual norm, blocks 2–5" in cat and "1st of 11" in cat
    assert "once in 11 times" in cat
    assert "not told apart" in bread


def test_without_nulls_or_with_broken_ones_nothing_is_claimed():
    setting = Setting("cat", 1.0, 1, 1)
    assert furthest([(setting, Compared(3.0, ()))]) is None
    assert furthest([(setting, Compared(3.0, (math.nan, 1.0)))]) is None
    assert furthest([]) is None


# Pictures


LENS = [
    plots.LensCurve(
        "info", {0: -2.0, 1: -1.0, 2: 0.5}, {0: -2.0, 1: 1.0, 2: 2.0}, [{0: -2.0, 1: 0.0, 2: 0.4}] * 3, steered=(0, 1)
    ),
    plots.LensCurve("no info", {0: -2.0, 1: -1.0, 2: 0.5}, {0: -2.0, 1: -1.5, 2: math.nan}),
]
HEADS = {"injected": [[0.1, 0.2], [0.9, 0.0], [0.3, 0.1]], "not": [[0.1, 0.2], [0.1, 0.0], [0.3, math.nan]]}


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: plots.range_maps(swept()),
        lambda: plots.layer_curves(swept()),
        lambda: plots.strength_curves(swept(strengths=(0.05, 0.1, 0.2), ranges=[(2, 5)])),
        lambda: plots.layer_curves(own_question(swept())),
        lambda: plots.lens_curves(LENS, title="a title"),
        lambda: plots.lens_curves(LENS[:1]),
        lambda: plots.head_maps(HEADS),
        lambda: plots.head_maps({"difference": [[-0.1, 0.2], [0.0, 0.0]]}),
        lambda: plots.confusion([[3, 1], [2, 2]], ["cat", "bread"], interval=(0.3, 0.9)),
        lambda: plots.range_maps(swept(height=math.nan)),
    ],
)
def test_pictures_can_be_saved(drawn, tmp_path):
    for suffix in ("png", "svg"):
        figure = drawn()
        figure.savefig(tmp_path / f"x.{suffix}")
        if suffix == "png":
            pixels = image.imread(tmp_path / "x.png")[..., :3]
            assert (pixels != pixels[0, 0]).any(-1).mean() > 0.005  # something is drawn
        for legend in figure.legends:  # none is cut off
            assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: interactive.range_maps(swept(height=math.nan)),
        lambda: interactive.layer_curves(swept()),
        lambda: interactive.strength_curves(swept(strengths=(0.05, 0.1, 0.2), ranges=[(2, 5)])),
        lambda: interactive.lens_curves(LENS),
        lambda: interactive.head_maps(HEADS),
        lambda: interactive.overview([Result(synthetic.detection())]),
    ],
)
def test_interactive_pictures_are_json_without_nan(drawn):
    def refuse(constant):
        raise AssertionError(constant)

    figure = json.loads(drawn().to_json(), parse_constant=refuse)
    assert figure["data"] and figure["layout"]["height"] > 100


def test_the_range_map_shows_each_range_at_its_place():
    result = swept()
    heatmap = interactive.range_maps(result).data[0]
    by_setting = {d.setting[2:]: d.shift.value for d in result.detections() if d.setting.concept == "cat"}
    for first, row in zip(heatmap.y, heatmap.z, strict=True):
        for last, value in zip(heatmap.x, row, strict=True):
            assert value == by_setting.get((first, last))


@pytest.mark.parametrize("nulls", [4, 10])
def test_ticks_and_dots_of_range_maps_are_those_of_the_png(nulls):
    """Blocks 1, 8, 15 and 22: an axis in steps of five names none of them."""
    rng = np.random.default_rng(0)
    ranges = [(i, i + width) for i in (1, 8, 15) for width in (0, 7, 14) if i + width < 24]
    far = {(1, 8): 9.0, (8, 15): -9.0}  # above and below all rotations
    data = synthetic.sweep(
        ["cat"],
        [0.1],
        ranges,
        lambda concept, strength, first, last: (far.get((first, last), 0.0), 0.0),
        lambda k, strength, first, last: (rng.normal() + (-1) ** k * 2, 0.0),
        nulls=nulls,
    )
    result = Result(data)
    drawing = interactive.range_maps_drawing(result)
    for panel in drawing.panels:
        assert panel.x["tickvals"] == [1, 8, 15, 22] and panel.y["tickvals"] == [1, 8, 15]
        assert panel.x["type"] == panel.y["type"] == "category"
    dots = [trace for trace in drawing.panels[-1].traces if trace["type"] == "scatter"]
    figure = plots.range_maps(result)
    last = [axes for axes in figure.axes if axes.images][-1]
    offsets = [tuple(map(int, offset)) for collection in last.collections for offset in collection.get_offsets()]
    png = {([1, 8, 15][y], [1, 8, 15, 22][x]) for x, y in offsets}
    if nulls < 5:  # a dot of four says nothing: chance alone draws two of five
        assert dots == [] and png == set()
    else:
        assert set(zip(dots[0]["y"], dots[0]["x"], strict=True)) == png == set(far)


def five_blocks(ranges, strengths=(0.1,)):
    return swept(strengths=strengths, ranges=ranges, peak=ranges[0])


@pytest.mark.parametrize(
    "ranges", [[(1, 5), (2, 6), (3, 7)], [(1, 2), (3, 4), (5, 6)], [(1, 1), (5, 5)], [(1, 5), (3, 7)], [(0, 3), (4, 7)]]
)
def test_ranges_of_any_width_are_drawn_by_layer(ranges):
    result = five_blocks(ranges)
    for axes in (plots.layer_curves(result).axes[0],):
        drawn = next(line for line in axes.lines if line.get_label() == "introspection question")
        assert list(drawn.get_xdata()) == [(first + last) / 2 for first, last in ranges]
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == [f"{first}–{last}" if first < last else f"{first}" for first, last in ranges]
    assert len(interactive.layer_curves(result).data) > 0


@pytest.mark.parametrize(
    ("draw", "ranges", "why"),
    [
        (plots.layer_curves, [(2, 6)], "2 ranges or more of one width .*2–6"),
        (plots.layer_curves, [(1, 2), (1, 5)], "2 ranges or more of one width .*1–2, 1–5"),
        (plots.layer_curves, [(1, 2), (1, 3), (1, 4)], "drawn by range_maps"),
        (plots.strength_curves, [(2, 6), (1, 5)], "2 strengths or more"),
        (plots.range_maps, [(2, 6), (1, 5)], "three widths"),
        (interactive.layer_curves, [(2, 6)], "2 ranges or more"),
        (interactive.strength_curves, [(2, 6)], "2 strengths or more"),
        (interactive.range_maps, [(2, 6)], "three widths"),
    ],
)
def test_what_cannot_be_drawn_says_why(draw, ranges, why):
    with pytest.raises(ValueError, match=why):
        draw(five_blocks(ranges))


def test_the_table_of_a_sweep_holds_the_largest_effects_of_either_sign():
    def shift(concept, strength, first, last):
        return {(5, 5): -3.0, (2, 2): 2.0}.get((first, last), 0.01 * first), 0.0

    data = synthetic.sweep(["cat"], [0.1], [(i, i) for i in range(1, 20)], shift, lambda k, *at: (0.1 * k, 0.0))
    shown = detection_table(Result(data))
    column = shown.header.index("shift")
    assert [row[column] for row in shown.rows[:2]] == ["-3.00", "+2.00"] and len(shown.rows) == 8
    said = report.sweep_verdict(Result(data), "cat")
    assert "Its largest effect of either sign is -3.00 nats, at 0.1 × residual norm, block 5." in said


def test_the_largest_heads_are_named():
    assert plots.heads.largest(HEADS["injected"], 2) == [(1, 0), (2, 0)]
    texts = [text.get_text() for axes in plots.head_maps(HEADS).axes for text in axes.texts]
    assert "L1H0" in texts


def test_a_confusion_matrix_shows_shares_and_chance():
    figure = plots.confusion([[3, 1], [2, 2]], ["cat", "bread"])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"75%\n3", "25%\n1", "50%\n2"} <= set(texts)
    assert "62% right, chance 50%" in figure.get_suptitle()  # 5 of 8
    with pytest.raises(ValueError, match="2 x 2"):
        plots.confusion([[1, 2]], ["cat", "bread"])


def test_the_page_of_a_sweep(tmp_path):
    swept().save(tmp_path / "with_info.json")
    page = report.write(tmp_path).read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"with_info_range_maps.png", "with_info_range_maps.svg", "with_info_layer_curves.png"} <= names
    assert "with_info.png" not in names  # a panel for each of 56 settings would be no picture
    shown = page.replace(get_plotlyjs(), "")
    assert "The 8 of 28 settings of each concept" in shown
    assert shown.count("<td>cat, 0.1") == 8
    assert 'id="with_info_range_maps"' in shown and 'draw("with_info_range_maps"' in shown
    assert "at its best setting a concept stands out further than every random rotation" in shown
    sweep = json.loads((tmp_path / "report.json").read_text())["protocols"][0]["sweep"]
    assert sweep["concepts"]["cat"]["settings"] == 28
    assert (sweep["concepts"]["cat"]["best"]["first_layer"], sweep["concepts"]["cat"]["best"]["last_layer"]) == (2, 5)


def test_a_protocols_name_cannot_leave_its_place_in_the_page(tmp_path):
    result = swept()
    result.protocol["name"] = "</script><b>x"
    result.save(tmp_path / "odd.json")
    page = report.html([result], {f"{result.protocol['name']}_range_maps": b""})
    assert "</script><b>" not in page.replace(get_plotlyjs(), "")


# The command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a model of four layers, a vector of blocks 1 to 3, and a protocol with one control."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_chat(folder / "model", num_hidden_layers=4)
    rng = torch.Generator().manual_seed(5)
    vector = introspect.ControlVector("qwen2", {layer: torch.randn(32, generator=rng) for layer in (1, 2, 3)})
    vector.save(folder / "cat.gguf")
    turns = [
        {"role": "user", "content": "A thought."},
        {"role": "assistant", "content": "{ }"},
        {"role": "user", "content": "$QUESTION"},
        {"role": "assistant", "content": "The answer is"},
    ]
    own = [*turns[:2], {"role": "user", "content": "Noticed it?"}, turns[3]]
    controls = {"turns": turns, "injected": [0, 1], "questions": ["Is ice hot?"]}
    protocol = {"name": "mine", "turns": own, "injected": [0, 1], "controls": controls}
    (folder / "mine.json").write_text(json.dumps(protocol))
    return folder


def sweep(tiny, out, *arguments):
    command = ["sweep", tiny / "model", tiny / "mine.json", "--vector", tiny / "cat.gguf", "-o", out, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in command])


@pytest.mark.parametrize(
    ("arguments", "ranges"),
    [
        (("--all-ranges",), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]),
        (("--all-ranges", "--min-width", "2", "--max-width", "2"), [(1, 2), (2, 3)]),
        (("--all-ranges", "--layers", "2-3"), [(2, 2), (2, 3), (3, 3)]),
        (("--each-layer",), [(1, 1), (2, 2), (3, 3)]),
        (("--each-layer", "--step", "2"), [(1, 1), (3, 3)]),
        (("--layers", "1-2,0.0-1.0"), [(1, 2), (0, 3)]),
    ],
)
def test_the_ranges_asked_for_are_run(tiny, tmp_path, arguments, ranges):
    shown = sweep(tiny, tmp_path / "out", "--strength", "1,2.5", "--nulls", "1", *arguments)
    assert shown.exit_code == 0, shown.output
    table = Result.load(tmp_path / "out" / "mine.json").to_pandas()
    own = table[table.kind == "introspection"]
    assert list(zip(own.strength, own.first_layer, own.last_layer, strict=True)) == [
        (strength, *pair) for strength in (1.0, 2.5) for pair in ranges
    ]
    assert set(table.kind) == {"introspection", "control", "random"}


def test_a_wider_sweep_runs_only_what_is_missing(tiny, tmp_path):
    out = tmp_path / "out"
    n_settings, n_questions, nulls = 3, 2, 2
    assert sweep(tiny, out, "--each-layer", "--strength", "1", "--nulls", nulls).exit_code == 0
    before = introspect.Store(out / "cells.sqlite").to_pandas()
    assert len(before) == n_questions * (1 + n_settings * (1 + nulls))
    assert sweep(tiny, out, "--each-layer", "--strength", "1,2", "--nulls", nulls).exit_code == 0
    after = introspect.Store(out / "cells.sqlite").to_pandas()
    assert len(after) - len(before) == n_questions * n_settings * (1 + nulls)
    kept = after.iloc[: len(before)]
    assert list(kept.key) == list(before.key) and list(kept.written) == list(before.written)


def test_json_and_the_report_of_a_sweep(tiny, tmp_path):
    out = tmp_path / "out"
    shown = sweep(tiny, out, "--all-ranges", "--strength", "1,2", "--nulls", "2", "--json")
    (one,) = json.loads(shown.stdout)["sweeps"]
    assert one["concepts"]["cat"]["settings"] == 12
    assert "mine" in sweep(tiny, out, "--all-ranges", "--strength", "1,2", "--nulls", "2").stdout
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "mine_range_maps.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--all-ranges", "--each-layer"),
        ("--all-ranges", "--layers", "1-2,2-3"),
        ("--all-ranges", "--strength", "1,x"),
        ("--all-ranges", "--strength", "1", "--fraction", "0.1"),
        ("--all-ranges", "--step", "0"),
    ],
)
def test_wrong_usage_of_a_sweep_writes_nothing(tiny, tmp_path, arguments):
    assert sweep(tiny, tmp_path / "out", *arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_ranges_that_do_not_exist_end_with_one_line(tiny, tmp_path):
    result = sweep(tiny, tmp_path / "out", "--all-ranges", "--min-width", "9")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (400, "7 min"), (12600, "3.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_identification_is_a_confusion_matrix():
    result = Result(synthetic.content(("cat", "bread", "ocean")))
    for row in result.rows:  # bread is taken for ocean
        if row["concept"] == "bread" and row["kind"] == "introspection":
            row["injected"]["tokens"][4]["log_prob"] = 0.0
    assert answers(result) == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert "67% right, chance 33%" in plots.identified(result).get_suptitle()
    assert plots.identified(Result(synthetic.content())) is None  # of two


def test_an_interrupted_sweep_ends_with_130_and_keeps_its_readings(tiny, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "introspect", "sweep", tiny / "model", tiny / "mine.json", "--all-ranges"]
    command += ["--vector", tiny / "cat.gguf", "--strength", "1", "--nulls", "4000", "--yes", "-o", out]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not ((out / "cells.sqlite").exists() and len(introspect.Store(out / "cells.sqlite")) >= 20):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    announced, *progress, last = stderr.strip().splitlines()  # progress where the machine is slow
    assert announced.startswith(f"introspect: {2 * (1 + 6 * 4001):,} readings")
    assert last.startswith("introspect: interrupted; what was finished is kept")
    assert "same command goes on" in last and f"introspect report {out}" in last
    assert all(line.startswith("mine: ") for line in progress if line), progress
    store = introspect.Store(out / "cells.sqlite")
    assert store.problems() == [] and len(store) >= 20
    assert [path.name for path in out.glob("*.json*")] == ["sweep.json"]
    (partial,) = report.load_folder(out)
    assert 0 < len(partial.rows) < len(store)
    assert partial.settings["incomplete"] == {"done": len(partial.rows), "of": 2 * 6 * 4001}
