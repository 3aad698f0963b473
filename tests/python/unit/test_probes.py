"""Probes against their formulas, the tables made of them, monitors, files, and what bad input gets."""

import json
import math
import pickle
import random

import matplotlib.figure
import pytest
import torch
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import _C, analysis
from introspect.analysis.probe_inputs import randomised
from introspect.cli.app import app

WORDS = ["ball", "tree", "milk", "road", "hand", "ship", "lamp", "door", "wind", "coat", "king", "salt"]
MARK = {True: " yes", False: " no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "m")


@pytest.fixture(scope="module")
def model(folder):
    return introspect.load_model(folder)


def statements(n=48, seed=0):
    """Texts that end in a word for their label, groups by their noun."""
    draw = random.Random(seed)
    texts, labels, groups = [], [], []
    for i in range(n):
        noun, label = WORDS[i % len(WORDS)], (i // len(WORDS)) % 2 == 0
        texts.append(f"{draw.choice(['Now', 'Then', 'Soon'])} a {noun} said{MARK[label]}")
        labels.append(label)
        groups.append(noun)
    return texts, labels, groups


@pytest.fixture(scope="module")
def table(model):
    texts, labels, groups = statements()
    return analysis.probe_layers(model, texts, labels, groups=groups, folds=4, nulls=6, name="yes", progress=False)


def activations(model, texts, layer=1):
    return introspect.collect_activations(model, texts, layers=[layer]).values[:, 0]


# Formulas


def test_mass_means_are_the_difference_of_means_and_the_middle(rng):
    x, labels = torch.randn(40, 6, generator=rng, dtype=torch.float64), [0, 1, 1, 0] * 10
    of = [x[[i for i, label in enumerate(labels) if label == k]] for k in (0, 1)]
    theta = of[1].mean(0) - of[0].mean(0)
    probe = analysis.fit_probe(x, labels, kind="mass_mean")
    middle = (of[1].mean(0) + of[0].mean(0)) / 2
    torch.testing.assert_close(probe.scores(x), (x - middle) @ theta)
    within = torch.cat([one - one.mean(0) for one in of])
    tilted = torch.linalg.pinv(within.T @ within / 40, atol=1e-3, hermitian=True) @ theta
    whitened = analysis.fit_probe(x, labels, kind="mass_mean_covariance")
    torch.testing.assert_close(whitened.scores(x), (x - middle) @ tilted)


def test_the_covariance_of_few_rows_goes_through_its_pseudo_inverse(rng):
    x, labels = torch.randn(12, 30, generator=rng, dtype=torch.float64), [0, 1] * 6
    of = [x[k::2] for k in (0, 1)]
    within = torch.cat([one - one.mean(0) for one in of])
    tilted = torch.linalg.pinv(within.T @ within / 12, atol=1e-3, hermitian=True) @ (of[1].mean(0) - of[0].mean(0))
    probe = analysis.fit_probe(x, labels, kind="mass_mean_covariance")
    torch.testing.assert_close(probe.weights[0], tilted, rtol=1e-7, atol=1e-9)


def test_mass_means_of_three_classes_take_the_nearest_mean(rng):
    x, labels = torch.randn(60, 5, generator=rng, dtype=torch.float64), [0, 1, 2] * 20
    means = torch.stack([x[k::3].mean(0) for k in range(3)])
    scores = analysis.fit_probe(x, labels, kind="mass_mean").scores(x)
    assert torch.equal(scores.argmax(1), torch.cdist(x, means).argmin(1))


def test_the_description_length_is_the_online_code(rng):
    n = 160
    x, labels = torch.randn(n, 8, generator=rng, dtype=torch.float64), []
    labels = (x[:, 0] + 0.3 * torch.randn(n, generator=rng, dtype=torch.float64) > 0).long().tolist()
    folds = _C.stratified_folds(labels, 4)
    # One group a text, in an order that the labels' groups fix: with two groups the order is one or the other.
    groups = [i % 2 for i in range(n)]
    (study,) = _C.study_probes(
        x[:, None], ["a", "b"], labels, folds=folds, groups=groups, nulls=0, resamples=10, progress=False
    )
    orders = [list(range(0, n, 2)) + list(range(1, n, 2)), list(range(1, n, 2)) + list(range(0, n, 2))]
    ends = sorted(
        {max(1, round(n * f)) for f in (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1)}
    )
    candidates = []
    for order in orders:
        bits, known = 0.0, 0
        for end in ends:
            seen, block = order[:known], order[known:end]
            if len({labels[i] for i in seen}) < 2:
                bits += len(block)
            else:
                probe = analysis.fit_probe(x[seen], [labels[i] for i in seen])
                p = probe.probabilities(x[block])
                bits -= sum(math.log2(p[row, labels[i]]) for row, i in enumerate(block))
            known = end
        candidates.append(bits)
    assert min(abs(study.description_bits - one) for one in candidates) < 0.02
    assert study.compression == pytest.approx(n / study.description_bits)
    assert study.compression > 1.3  # the labels are in there


def test_scores_say_the_same_as_probabilities(rng):
    x = torch.randn(30, 4, generator=rng)
    two, three = analysis.fit_probe(x, [0, 1] * 15), analysis.fit_probe(x, [0, 1, 2] * 10)
    torch.testing.assert_close(two.probabilities(x)[:, 1], two.scores(x).sigmoid())
    torch.testing.assert_close(three.probabilities(x), three.scores(x).softmax(-1))
    with pytest.raises(introspect.ConfigError, match="no log-odds"):
        analysis.fit_probe(x, [0, 1] * 15, kind="ridge").probabilities(x)


# Studies


def test_a_table_has_a_row_for_every_layer_with_nulls_and_baselines(table, model):
    assert [row.layer for row in table.rows] == list(range(model.cfg.n_layers))
    frame = table.to_pandas()
    assert {"auc", "auc_low", "p_auc", "null_auc_highest", "selectivity", "compression"} <= set(frame.columns)
    assert table.best.auc > 0.9 and table.classes == ("False", "True")
    assert table.best.auc_low <= table.best.auc <= table.best.auc_high
    assert all(len(row.null_auc) == 6 for row in table.rows)
    assert table.best.p_auc == pytest.approx(1 / 7)  # above every shuffle's highest
    assert table.baselines["words"].auc > 0.9  # the word itself is there: a surface reader finds it
    assert table.n_groups == len(WORDS)
    assert isinstance(table.plot(), matplotlib.figure.Figure)


def test_held_out_scores_are_of_a_probe_that_has_not_seen_the_fold(table, model):
    texts, labels, _ = statements()
    x, at = activations(model, texts), (1, -1)
    for fold in set(table.folds):
        train = [i for i, f in enumerate(table.folds) if f != fold]
        test = [i for i, f in enumerate(table.folds) if f == fold]
        probe = analysis.fit_probe(x[train], [labels[i] for i in train])
        torch.testing.assert_close(table.held_out[at][test], probe.scores(x[test]), rtol=0, atol=2e-2)


def test_groups_stay_in_one_fold(table):
    _, _, groups = statements()
    of = {}
    for group, fold in zip(groups, table.folds, strict=True):
        of.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in of.values())


def test_labels_that_say_nothing_are_not_found(model):
    texts, _, _ = statements()
    labels = [random.Random(i).random() < 0.5 for i in range(len(texts))]
    table = analysis.probe_layers(model, texts, labels, folds=3, nulls=20, progress=False)
    assert min(row.p_auc for row in table.rows) > 0.05


def test_several_positions_are_read_in_one_pass(model):
    texts, labels, groups = statements()
    positions = [-1, 1, (1, None)]
    options = {"groups": groups, "folds": 3, "nulls": 0, "baselines": False, "progress": False}
    together = analysis.probe_layers(model, texts, labels, position=positions, **options)
    for position in positions:
        alone = analysis.probe_layers(model, texts, labels, position=position, **options)
        for row in alone.rows:
            same = next(r for r in together.rows if (r.layer, r.position) == (row.layer, position))
            assert same.log_loss == pytest.approx(row.log_loss, abs=1e-4)
    assert together.probe(1, (1, None)).position == (1, None)


def test_the_control_task_gives_types_a_class_each(model):
    texts, labels, groups = statements()
    by_noun = analysis.probe_layers(
        model, texts, labels, layers=[1], folds=3, control=groups, nulls=0, baselines=False, progress=False
    )
    assert by_noun.rows[0].control_accuracy is not None
    stopped = [text + "." for text in texts]
    same_token = analysis.probe_layers(model, stopped, labels, layers=[1], folds=3, nulls=0, progress=False)
    assert same_token.rows[0].control_accuracy is None and same_token.rows[0].selectivity is None  # all end in "."


def test_probes_go_over_to_other_texts(table, model):
    texts, labels, groups = statements(seed=3)
    texts = ["Well, " + text for text in texts]
    moved = table.transfer(model, texts, labels, groups=groups, progress=False)
    x = activations(model, texts)
    probe = table.probe(1)
    hits = [(score > 0) == label for score, label in zip(probe.scores(x).tolist(), labels, strict=True)]
    row = next(row for row in moved.rows if row.layer == 1)
    assert row.accuracy == pytest.approx(sum(hits) / len(hits))
    with pytest.raises(ValueError, match="labels must be False, True, got 'maybe'"):
        table.transfer(model, texts, ["maybe"] * len(texts))


# A probe as a value


def test_a_probe_comes_back_from_its_file_and_from_a_pickle(table, tmp_path, model):
    texts, _, _ = statements()
    probe = table.probe(2).with_(threshold=1.5)
    probe.save(tmp_path / "p.safetensors")
    x = activations(model, texts, 2)
    for other in (analysis.Probe.load(tmp_path / "p.safetensors"), pickle.loads(pickle.dumps(probe))):
        assert torch.equal(other.scores(x), probe.scores(x))
        for name in ("kind", "classes", "name", "layer", "position", "model_hash", "data_hash", "threshold", "C"):
            assert getattr(other, name) == getattr(probe, name)
    assert probe.name == "yes" and probe.model_hash == model.hash and len(probe.data_hash) == 64


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 64])
def test_a_file_that_holds_no_probe_is_an_io_error(tmp_path, damage):
    path = tmp_path / "p.safetensors"
    path.write_bytes(damage)
    with pytest.raises(introspect.IoError):
        analysis.Probe.load(path)


def test_its_direction_raises_its_score(table, model):
    texts, _, _ = statements()
    probe = table.probe(1)
    vector = probe.direction()
    assert vector.layers == [1] and vector.model_hash == model.hash
    assert vector.directions[1].norm() == pytest.approx(1)
    x = activations(model, texts)
    gained = probe.scores(x + vector.directions[1]) - probe.scores(x)
    expected = (probe.weights[0] / probe.scale).norm()
    torch.testing.assert_close(gained, expected.expand_as(gained), rtol=1e-4, atol=1e-4)


def test_it_is_a_readout_of_experiments(table, model):
    probe = table.probe(2).with_(name="truth")  # after the block that sees what is added to the one below
    introspect.register_readout(analysis.probe_readout(probe))
    vector = introspect.ControlVector("qwen2", {1: torch.ones(32)})
    result = introspect.run_experiment(
        model, introspect.load_protocol("no_info"), vectors={"one": vector}, strengths=[4.0], layers=[(1, 1)],
        questions=[], nulls=0, readouts={"truth": True}, progress=False,
    )  # fmt: skip
    row = result.to_pandas().iloc[0]
    assert abs(row["truth"] - row["truth_base"]) > 1e-3
    assert analysis.probe_readout(probe).version != analysis.probe_readout(table.probe(1)).version


# Monitors


def test_thresholds_let_at_most_the_rate_pass():
    harmless = list(range(200))
    assert sum(x >= _C.threshold_at(harmless, 0.01) for x in harmless) == 2
    assert sum(x >= _C.threshold_at(harmless, 0.0) for x in harmless) == 0
    assert _C.threshold_at([1.0] * 50, 0.01) > 1.0  # ties do not slip through


def test_calibration_error_is_the_distance_of_stated_and_observed():
    assert _C.calibration_error([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 1]) == pytest.approx(0.05)
    assert _C.calibration_error([0.9] * 10, [1] * 9 + [0]) == pytest.approx(0.0)
    assert _C.calibration_error([1.0], [0]) == 1.0


def test_a_monitor_is_judged_on_other_texts(table, model):
    texts, labels, _ = statements(seed=5)
    positives = [t for t, label in zip(texts, labels, strict=True) if label]
    negatives = [t for t, label in zip(texts, labels, strict=True) if not label]
    monitor = analysis.set_threshold(model, table.probe(1), negatives[:12], false_positive_rate=0.1, progress=False)
    report = analysis.monitor_report(model, monitor, positives, negatives[12:], progress=False)
    scores = analysis.probe_scores(model, monitor, positives, progress=False)
    assert report.recall.successes == int((scores >= monitor.threshold).sum()) and report.recall.trials == len(
        positives
    )
    assert report.auc.interval.low <= report.auc.value <= 1 and 0 <= report.calibration_error <= 1
    with pytest.raises(introspect.ConfigError, match="set_threshold"):
        analysis.monitor_report(model, table.probe(1), positives, negatives)


def test_misalignment_is_the_highest_of_named_scores_against_thresholds(table, model):
    texts, _, _ = statements()
    probe = table.probe(1)
    vector = probe.direction()

    class Feature:  # what a dictionary's feature will be
        name, layer, position, threshold = "first entry", 2, (0, None), 0.0

        def scores(self, x):
            return x[:, 0]

    features = {"yes": probe.with_(threshold=0.0), "along": vector, "first": Feature()}
    report = analysis.detect_misalignment(model, texts, features, thresholds={"along": 1e9}, progress=False)
    x, means = (
        activations(model, texts),
        introspect.collect_activations(model, texts, layers=[2], read_position=(0, None)).values[:, 0],
    )
    torch.testing.assert_close(report.scores[:, 0], probe.scores(x))
    torch.testing.assert_close(report.scores[:, 1], (x @ vector.directions[1]).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(report.scores[:, 2], means[:, 0].double())
    assert torch.equal(report.max_score, report.scores.max(1).values)
    assert torch.equal(report.is_misaligned, (report.scores[:, 0] >= 0) | (report.scores[:, 2] >= 0))
    assert list(report.to_pandas()["is_misaligned"]) == report.is_misaligned.tolist()
    assert analysis.detect_misalignment(model, texts, [Feature()], progress=False).features == ("first entry",)
    with pytest.raises(introspect.ConfigError, match="no threshold"):
        analysis.detect_misalignment(model, texts, {"yes": probe})
    with pytest.raises(TypeError, match="layer and scores"):
        analysis.detect_misalignment(model, texts, {"x": 3}, thresholds=0.0)


# Bad input


def refused(model, match, error=ValueError, **changes):
    texts, labels, groups = statements()
    arguments = {"texts": texts, "labels": labels, "groups": groups, **changes}
    with pytest.raises(error, match=match):
        analysis.probe_layers(model, arguments.pop("texts"), arguments.pop("labels"), progress=False, **arguments)


def test_what_does_not_go_together_is_said_before_the_first_pass(model, monkeypatch):
    monkeypatch.setattr(_C, "collect_positions", lambda *a, **k: pytest.fail("it ran"))
    refused(model, "two classes or more, got True for all 48", labels=[True] * 48)
    refused(model, "at least as many groups as folds, got 2 groups and 5", groups=[i % 2 for i in range(48)])
    refused(model, "one label, got 47 for 48", labels=statements()[1][:-1])
    refused(model, "one group, got 3 for 48", groups=["a", "b", "c"])
    refused(model, "as many texts as there are folds", groups=None, labels=[1] * 46 + [0] * 2)
    refused(model, "all of its texts in fold", labels=[g == "ball" for g in statements()[2]])
    refused(model, "kind must be one of logistic", kind="forest")
    refused(model, "C must be above 0", C=[1.0, 0.0])
    refused(model, "nulls must not be negative", nulls=-1)
    refused(model, "numbered from 0", folds=[3 * (i % 2) for i in range(48)])
    refused(model, "list of texts", TypeError, texts="one text")
    refused(model, "that of text 1 is missing: nan", labels=[True, float("nan"), *statements()[1][2:]])
    refused(model, "that of text 0 is missing: None", groups=[None, *statements()[2][1:]])
    refused(model, "single values of one kind, got bool, str", TypeError, labels=["yes", *statements()[1][1:]])
    refused(model, "baselines are length, words, random_model, got 'chance'", baselines=["chance"])


def test_transfer_reads_the_last_layer_as_its_probe_does(model):
    texts, labels, groups = statements()
    options = {"groups": groups, "folds": 3, "nulls": 0, "baselines": False, "progress": False}
    table = analysis.probe_layers(model, texts, labels, layers=[2], last_layer_after_norm=True, **options)
    other = [text + " Indeed" for text in texts]
    normed = _C.collect_positions(model.native, other, [-1], layers=[2], last_layer_after_norm=True)[0].values[:, 0]
    hits = (table.probe(2).scores(normed) > 0) == torch.tensor(labels)
    assert table.transfer(model, other, labels).rows[0].accuracy == pytest.approx(hits.double().mean().item())


def test_a_random_model_has_the_same_norms_and_other_matrices(model):
    texts, labels, groups = statements()
    options = {"groups": groups, "folds": 3, "nulls": 0, "progress": False, "seed": 3}
    table = analysis.probe_layers(model, texts, labels, baselines=["random_model"], **options)
    assert list(table.baselines) == ["random_model"]
    drawn = randomised(model.native, 3)
    for (name, ours), (_, theirs) in zip(drawn.named_weights(), model.native.named_weights(), strict=True):
        if ours.dim() < 2:
            assert torch.equal(ours, theirs), name
        else:
            assert not torch.equal(ours, theirs)
            assert ours.square().mean().sqrt().item() == pytest.approx(theirs.square().mean().sqrt().item(), rel=0.1)
    by_itself = analysis.probe_layers(introspect.Model(drawn), texts, labels, baselines=False, **options)
    assert table.baselines["random_model"].auc == by_itself.best.auc
    assert table.baselines["random_model"].layer == by_itself.best.layer
    table.plot()


def test_activations_that_are_not_finite_are_named_by_text_and_layer(folder):
    model = introspect.load_model(folder)
    weights = dict(model.native.named_weights())
    (special,) = model.tokenizer.encode(" bread", add_special_tokens=False)
    broken = weights["embed.W_E"].clone()
    broken[special] = float("nan")
    model = introspect.Model(model.native.with_weights({"embed.W_E": broken}))
    texts, _, _ = statements()
    texts[7] += " bread"
    refused(model, "those of text 7 at layer 2 are not", texts=texts, layers=[2], folds=3)


def test_a_probe_of_another_model_is_refused(table, tmp_path):
    other = introspect.load_model(write_tiny_chat(tmp_path / "other", seed=9))
    for call in (
        lambda: analysis.probe_scores(other, table.probe(1), ["A ball."]),
        lambda: analysis.detect_misalignment(other, "A ball.", {"yes": table.probe(1)}, thresholds=0.0),
        lambda: table.transfer(other, ["a", "b"], [True, False]),
    ):
        with pytest.raises(introspect.ConfigError, match="must be of this model"):
            call()


def test_a_probe_of_other_sizes_is_refused(table):
    with pytest.raises(introspect.ShapeError):
        table.probe(1).scores(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="finite"):
        table.probe(1).scores(torch.full((1, 32), float("nan")))
    with pytest.raises(introspect.ShapeError):
        table.probe(1).with_(weights=torch.zeros(2, 32))
    with pytest.raises(TypeError, match="no field colour"):
        table.probe(1).with_(colour=1)


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_files(folder, tmp_path):
    texts, labels, groups = statements()
    rows = [{"text": t, "label": y, "subject": g} for t, y, g in zip(texts, labels, groups, strict=True)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    files = [tmp_path / name for name in ("p.png", "p.csv", "p.safetensors")]
    options = ["--group", "subject", "--folds", "3", "--nulls", "3", *(x for f in files for x in ("-o", f))]
    shown = run(folder, data, *options)
    assert shown.exit_code == 0, shown.output
    assert all(file.stat().st_size > 0 for file in files) and "AUC" in shown.output
    said = json.loads(run(folder, data, "--group", "subject", "--folds", "3", "--nulls", "3", "--json").stdout)
    assert said["classes"] == ["False", "True"] and len(said["rows"]) == 3 and said["n_texts"] == 48
    assert analysis.Probe.load(files[2]).layer == said["best"]["layer"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.csv", "text,label\na,1\n", "two classes"),
        ("d.csv", "words,label\na,1\n", "no column text"),
        ("d.csv", "text,label\na,1\nb,\n", "row 2 has nothing in column label"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": ', "line 2"),
        ("d.jsonl", "", "no rows"),
        ("d.txt", "a", ".csv or .jsonl"),
    ],
)
def test_data_that_cannot_be_read_is_one_line(folder, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    result = run(folder, tmp_path / name)
    assert result.exit_code in (1, 2) and said in result.stderr and "Traceback" not in result.output
