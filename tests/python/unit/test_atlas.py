"""The atlas: entries are read strictly, all make protocols, measures are hand arithmetic, runs are the plain ones."""

import json
import math

import pytest
import tiny_chat
from scipy import stats
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.studies import atlas
from introspect.studies.atlas.expand import cells
from introspect.studies.atlas.measures import (
    Measure,
    Reading,
    expected_number,
    fits,
    mean_over,
    mutual_information,
)

MORE_WORDS = ["Ġ" + letter for letter in "ABCDEFGHIJ"] + ["Ġone", "Ġzero"]
ASKS = {
    "name": "asks",
    "title": "Asks",
    "source": "nobody",
    "asks": "Does it notice?",
    "published": {
        "models": ["a large one"],
        "figures": [{"name": "rate", "value": 20, "unit": "%", "beside": "detect/yes_rate"}],
    },
    "settings": {"layers": [1, 2], "strengths": [0.5], "strength_unit": "residual"},
    "parts": [
        {
            "name": "detect",
            "protocol": {
                "turns": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "ok"},
                    {"role": "user", "content": "Is it so?"},
                    {"role": "assistant", "content": "It is"},
                ],
                "injected": [0],
            },
            "vary": {"style": {"plain": {}, "doubtful": {"question": "Surely not?"}}},
            "measures": ["yes_rate", {"measure": "yes_shift", "each": ["style"]}],
        }
    ],
    "differs": [],
    "wording": "own",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_chat, "WORDS", tiny_chat.WORDS + MORE_WORDS)
        return tiny_chat.write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


@pytest.fixture(scope="module")
def vectors():
    return tiny_chat.random_vectors()


def changed(**fields):
    return json.dumps({**ASKS, **fields})


def reading(concept, *, base=0.0, odds=0.0, sign=1, tags=(), **injected):
    row = {"base": {"log_odds": base}, "injected": {"log_odds": odds, **injected}, "strength": 1.0}
    return Reading(row, concept, concept, {"kind": "introspection", "group": "", "order": 0, **dict(tags)}, sign)


def figure(measure, readings):
    return Measure.parse(measure, "test").figures("part", readings)


@pytest.mark.parametrize("name", atlas.ENTRIES)
def test_every_entry_makes_protocols_that_fit_the_model(name, model, vectors):
    entry = atlas.entry(name)
    listed = cells(entry, vectors, entry.settings)
    assert {cell.part.name for cell in listed} == {part.name for part in entry.parts}
    assert len({(cell.experiment.protocol.name, cell.tags["vector"]) for cell in listed}) == len(listed)
    assert not any("$" in cell.experiment.protocol.turns[-1]["content"] for cell in listed)
    named = {f"{part.name}/{measure.name}" for part in entry.parts for measure in part.measures}
    beside = {"/".join(one.beside.split("/")[:2]) for one in entry.published if one.beside}
    assert beside <= named
    if name != "pearson_vogel":  # whose texts are thousands of bytes for a vocabulary of bytes
        assert atlas.replicate(name, model, vectors=vectors, plan=True).readings > 0


@pytest.mark.parametrize("name", ["lindsey_prefill", "lindsey_control", "fornasiere"])
def test_entries_run(name, model, vectors):
    ran = atlas.replicate(name, model, vectors=vectors)
    assert all(math.isfinite(one.estimate.value) for one in ran.figures)
    assert all(one.asks in str(ran).replace("\n", " ") for one in [ran.entry])
    assert json.loads(ran.to_json())["entry"] == name


def test_a_run_is_the_experiments_by_themselves(model, vectors):
    ran = atlas.replicate(atlas.Entry.parse(changed()), model, vectors=vectors)
    data = {**ASKS["parts"][0]["protocol"], "name": "x"}
    protocol = introspect.Protocol.parse(json.dumps(data))
    options = {"strengths": 0.5, "strength_unit": "residual", "layers": (1, 2), "nulls": 0, "dose": False}
    alone = introspect.run_experiment(model, protocol, vectors=vectors, questions=[], **options)
    shifts = [row["injected"]["log_odds"] - row["base"]["log_odds"] for row in alone.rows]
    assert ran["detect/yes_shift/style=plain"].estimate.value == pytest.approx(sum(shifts) / 2, abs=1e-6)
    assert ran["detect/yes_shift/style=doubtful"].estimate.value != pytest.approx(sum(shifts) / 2, abs=1e-6)
    assert "published: rate: 20%" in str(ran)
    with pytest.raises(KeyError, match="detect/yes_rate"):
        ran["detect/nothing"]


def test_means_count_every_concept_alike():
    found = mean_over([1.0, 3.0, 10.0, math.nan], ["a", "a", "b", "b"])
    assert (found.value, found.n) == (6.0, 2)
    # Student's t with one degree of freedom: 6 ± 12.706 · 4
    assert found.low == pytest.approx(6 - 12.7062 * 4, rel=1e-4)
    assert math.isnan(mean_over([2.0], ["a"]).low)
    # one reading without an injection is the same for all concepts: it has no interval, least of all one of length 0
    same = mean_over([2.0, 2.0], ["a", "b"])
    assert (same.value, same.n) == (2.0, 2) and math.isnan(same.low) and math.isnan(same.high)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_none_or_all_right_has_the_exact_interval(right):
    readings = [
        reading(name, odds=2 * right - 1, answer_shares={name: right + 0.5, "other": 1.0}) for name in "abcdefgh"
    ]
    for measure in ("identified", "label_share"):
        one = figure(measure, readings)[0].estimate
        exact = stats.binomtest(int(8 * right), 8).proportion_ci(0.95, "exact")
        assert (one.value, one.low, one.high) == pytest.approx((right, exact.low, exact.high)), measure


def test_shares_and_information_by_hand():
    assert mutual_information([[1, 0], [0, 1]]) == pytest.approx(1.0)
    assert mutual_information([[3, 3], [1, 1]]) == pytest.approx(0.0)
    # H(3/4, 1/4) of the answers less the mean of the rows' entropies, H(1/2, 1/2) and 0
    assert mutual_information([[1, 1], [2, 0]]) == pytest.approx(0.811278 - 0.5, abs=1e-6)
    assert expected_number({"1": 0.1, "3": 0.3, "none": 0.6}) == pytest.approx(2.5)


def test_measures_by_hand():
    readings = [
        reading("cat", base=-1, odds=1, answer_shares={"cat": 0.2, "bread": 0.1}),
        reading("bread", base=-1, odds=0, answer_shares={"cat": 0.3, "bread": 0.1}),
        reading("cat", base=4, odds=3, tags={"kind": "control", "group": "factual_yes"}),
        reading("bread", base=4, odds=2, tags={"kind": "control", "group": "factual_yes"}),
    ]
    assert figure("yes_shift", readings)[0].estimate.value == 1.5
    net = figure({"measure": "yes_shift", "less": {"kind": "control"}}, readings)[0]
    assert net.estimate.value == 3.0  # 2 - (-1) and 1 - (-2)
    drawn = figure({"measure": "towards_zero", "of": {"group": "factual_yes"}}, readings)[0]
    assert drawn.estimate.value == 1.5
    identified = figure("identified", readings)[0]
    assert (identified.estimate.value, identified.chance) == (0.5, 0.5)
    own = figure({"measure": "answer_share", "label": "own"}, readings[:2])[0]
    assert own.estimate.value == pytest.approx((2 / 3 + 1 / 4) / 2)
    # each concept's own share of both: 2/3 and 1/4, whose t interval reaches beyond what a share can be
    assert (own.estimate.low, own.estimate.high) == (0.0, 1.0)
    # rates: of log-odds 1 and 0
    assert figure("yes_rate", readings)[0].estimate.value == pytest.approx((1 / (1 + math.exp(-1)) + 0.5) / 2)


def test_a_tag_that_readings_lack_is_an_error_and_no_choice():
    tags = {"kind": "control", "order": 1}
    assert fits(tags, {}) and fits(tags, {"kind": "control"}) and fits(tags, {"kind": ["x", "control"], "order": [1]})
    assert not fits(tags, {"order": [0, 2]}) and not fits(tags, {"kind": "x", "order": 1})
    for wanted in ({"vector": "own"}, {"kind": "x", "vector": "own"}, {"vector": None}):
        with pytest.raises(introspect.ConfigError, match="the tags kind, order, and no 'vector'"):
            fits(tags, wanted)
    readings = [reading("a", tags={"vector": "own"}), reading("b")]
    for asked in ({"of": {"vector": "own"}}, {"less": {"vector": "own"}}, {"each": ["vector"]}):
        with pytest.raises(introspect.ConfigError, match="no 'vector'"):
            figure({"measure": "yes_shift", **asked}, readings)


def test_labels_that_are_flipped_cancel_a_liking():
    likes_a = [reading("cat", odds=2, sign=sign) for sign in (1, -1)]
    assert figure("right_label", likes_a)[0].estimate.value == 0
    assert figure("label_share", likes_a)[0].estimate.value == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "red"}, "entry 'asks': unknown field colour"),
        ({"wording": "hers"}, "wording must be one of theirs, own"),
        ({"parts": []}, "parts must be one or more"),
        ({"title": ""}, "title must be a text"),
        ({"settings": {"layers": [1]}}, r"settings: layers must be \[first, last\]"),
        ({"settings": {"concepts": True}}, "settings: concepts must be of type int"),
        ({"texts": {"NAME": "x"}}, "texts must be"),
        ({"parts": [{**ASKS["parts"][0], "measures": ["yes_shfit"]}]}, r"measures\[0\]: measure must be one of"),
        ({"parts": [{**ASKS["parts"][0], "options": {"null": 3}}]}, r"parts\[0\] \(detect\): options must be of"),
        ({"parts": [{**ASKS["parts"][0], "mismatch": True}]}, "mismatch must go with per_concept"),
        (
            {"parts": [{**ASKS["parts"][0], "measures": [{"measure": "yes_shift", "each": ["info"]}]}]},
            "must go by .*style.*, got .*info",
        ),
    ],
)
def test_mistakes_of_entries_have_their_place(fields, message):
    with pytest.raises(introspect.ConfigError, match=message):
        atlas.Entry.parse(changed(**fields))


def test_a_replacement_that_replaces_nothing_is_refused(vectors):
    part = {**ASKS["parts"][0], "vary": {"style": {"odd": {"replace": {"$NOWHERE": "x"}}}}}
    entry = atlas.Entry.parse(changed(parts=[part]))
    with pytest.raises(introspect.ConfigError, match="part 'detect': replace: '\\$NOWHERE' stands nowhere"):
        cells(entry, vectors, entry.settings)


def test_bad_arguments_are_refused_before_anything_runs(model, vectors):
    with pytest.raises(ValueError, match="nearest: macar"):
        atlas.entry("mcar")
    with pytest.raises(ValueError, match="no vector of dog; there are cat, bread"):
        atlas.replicate("godet", model, vectors=vectors, concepts=["cat", "dog"])
    with pytest.raises(ValueError, match="two concepts or more"):
        atlas.replicate("godet", model, vectors=vectors, concepts=["cat"])
    for few in (1, 0, -1):
        with pytest.raises(ValueError, match=f"concepts must be .*2.*{few}"):
            atlas.replicate("godet", model, vectors=vectors, concepts=few)
    with pytest.raises(ValueError, match="3 concepts are asked for, and there are 2"):
        atlas.replicate("godet", model, vectors=vectors, concepts=3)
    uneven = {"cat": vectors["cat"], "elephant": vectors["bread"]}
    with pytest.raises(introspect.ConfigError, match=r"equally many tokens.*cat \(1\), elephant \(9\)"):
        atlas.replicate("macar", model, vectors=uneven)


def test_command_lists_plans_and_runs(folder, vectors, tmp_path):
    listed = CliRunner().invoke(app, ["replicate", "--list"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in atlas.ENTRIES)
    assert CliRunner().invoke(app, ["replicate"]).exit_code == 2
    unknown = CliRunner().invoke(app, ["replicate", "fornasier", "--model", str(folder)])
    assert unknown.exit_code == 1 and "nearest: fornasiere" in unknown.stderr
    files = []
    for name, vector in vectors.items():
        vector.save(tmp_path / f"{name}.gguf")
        files += ["--vector", f"{name}={tmp_path / f'{name}.gguf'}"]
    (tmp_path / "asks.json").write_text(changed())
    command = ["replicate", str(tmp_path / "asks.json"), "--model", str(folder), *files, "-o", str(tmp_path / "out")]
    planned = CliRunner().invoke(app, [*command, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "readings" in planned.stdout and not (tmp_path / "out").exists()
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert "published: rate: 20%" in ran.stdout and "judge: none" in ran.stdout
    saved = json.loads((tmp_path / "out" / "asks.json").read_text())
    assert [one["figure"] for one in saved["figures"]] == [
        "detect/yes_rate",
        "detect/yes_shift/style=plain",
        "detect/yes_shift/style=doubtful",
    ]


def test_study_is_a_command_that_says_what_stands_and_writes_the_page(folder, vectors, tmp_path):
    command = ["study", str(folder), "anthropic_style", "-o", str(tmp_path / "out"), "--nulls", "2", "--layers", "1-2"]
    for name, vector in vectors.items():
        vector.save(tmp_path / f"{name}.gguf")
        command += ["--vector", f"{name}={tmp_path / f'{name}.gguf'}"]
    command += ["--arm", "injected", "--arm", "rotations"]
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "together" in planned.stdout and not (tmp_path / "out").exists()
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    study = introspect.studies.Study.load(tmp_path / "out" / "anthropic_style.study.json")
    assert list(study.results) == ["injected", "rotations"]
    assert study.claims().strongest in ran.stdout
    assert (tmp_path / "out" / "anthropic_style.html").is_file()
    unknown = CliRunner().invoke(app, [*command, "--arm", "wishes"])
    assert unknown.exit_code == 1 and "arms must be of" in unknown.stderr
