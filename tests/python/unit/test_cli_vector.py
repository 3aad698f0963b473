"""`introspect vector`: what a file holds, weighted sums, the other format, and how failures end."""

import json

import pytest
import torch
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import plots
from introspect.cli.app import app
from introspect.cli.vector import advice_on


def invoke(*arguments):
    return CliRunner().invoke(app, ["vector", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def trained(folder):
    model = introspect.load_model(folder)
    pairs = introspect.concept_pairs(model, "cat", ["I", "It", "We", "A", "The", "So"])
    return introspect.ControlVector.train_many(model, {"cat": pairs})["cat"]


def test_show_prints_every_layer(trained, tmp_path):
    path = tmp_path / "cat.gguf"
    trained.save(path)
    done = invoke("show", path)
    assert done.exit_code == 0
    assert "pca_center on 6 pairs" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["1", "2"]
    shown = json.loads(invoke("show", path, "--json").stdout)
    assert (shown["method"], shown["n_pairs"], shown["folds"], shown["d_model"]) == ("pca_center", 6, 2, 32)
    for row in shown["layers"]:
        assert row["norm"] == pytest.approx(1, rel=1e-6)
        assert row["first_share"] == pytest.approx(trained.spectrum[row["layer"]][0])
        assert row["auc"] == pytest.approx(trained.diagnostics[row["layer"]].auc)


def test_show_of_a_vector_without_origin(tmp_path):
    path = tmp_path / "made.safetensors"
    introspect.ControlVector("llama", {0: torch.ones(4)}).save(path)
    done = invoke("show", path)
    assert done.exit_code == 0
    assert "method unknown" in done.stdout
    assert "does not name" in done.stdout and "accuracy" not in done.stdout
    assert json.loads(invoke("show", path, "--json").stdout)["layers"][0]["auc"] is None


def test_combine_is_the_weighted_sum(tmp_path):
    a, b = (introspect.ControlVector("llama", {1: torch.randn(8), k: torch.randn(8)}) for k in (2, 3))
    a.save(tmp_path / "a.gguf")
    b.save(tmp_path / "b.safetensors")
    terms = [f"0.5*{tmp_path / 'a.gguf'}", f"-2*{tmp_path / 'b.safetensors'}"]
    done = invoke("combine", "-o", tmp_path / "c.gguf", "--", *terms)
    assert done.exit_code == 0
    assert introspect.ControlVector.load(tmp_path / "c.gguf") == 0.5 * a + -2 * b


@pytest.mark.parametrize("weight", ["-0.5", "-.5", "-5e-1"])
def test_a_weight_below_zero_needs_nothing_before_it(weight, tmp_path):
    # "foo" has an o in it, as the option -o has.
    a, b = (introspect.ControlVector("llama", {1: torch.randn(8)}) for _ in range(2))
    a.save(tmp_path / "a.gguf")
    b.save(tmp_path / "foo.gguf")
    out = tmp_path / "m.gguf"
    for arguments in (
        ("-o", out, tmp_path / "a.gguf", f"{weight}*{tmp_path / 'foo.gguf'}"),
        (f"{weight}*{tmp_path / 'foo.gguf'}", tmp_path / "a.gguf", "--output", out),
        ("-o", out, "--", tmp_path / "a.gguf", f"{weight}*{tmp_path / 'foo.gguf'}"),
    ):
        done = invoke("combine", *arguments)
        assert done.exit_code == 0, done.output
        assert introspect.ControlVector.load(out) == a + -0.5 * b
        out.unlink()


def test_show_names_the_concept_and_explains_every_column_once(trained, tmp_path):
    path = tmp_path / "x.gguf"
    trained.save(path)
    shown = invoke("show", path).stdout
    assert "“cat”" in shown
    *_, header, _, _ = shown.splitlines()
    names = header.split("  ")
    assert [name for name in map(str.strip, names) if name] == ["layer", "norm", "1st share", "sign", "accuracy", "AUC"]
    for name in ("layer", "norm", "1st share", "sign", "accuracy", "AUC"):
        assert sum(line.startswith(f"{name:9} ") for line in shown.splitlines()) == 1, name
    assert max(map(len, shown.splitlines()[1:])) <= 110
    assert json.loads(invoke("show", path, "--json").stdout)["concept"] == "cat"


def row(layer, auc, explained):
    return {"layer": layer, "auc": auc, "explained_variance": explained}


def test_the_advice_names_the_layers_that_tell_pairs_apart():
    rows = [
        row(1, 0.6, 0.2),
        row(2, 0.99, 0.3),
        row(3, 1.0, 0.6),
        row(4, 1.0, 0.5),
        row(5, 0.97, 0.1),
        row(7, 1.0, 0.55),
    ]
    said = advice_on(rows)
    assert said.startswith("Layers 2–4, 7 tell held-out pairs apart best (AUC 0.98 or more)")
    assert "most of the pairs' differences in 3–4, 7 (0.48 or more)" in said
    assert "No layer" in advice_on([row(1, 0.6, 0.2), row(2, 0.7, 0.2)])
    assert "cannot say" in advice_on([row(1, None, None)])


# introspect train


def train(folder, out, *arguments):
    command = ["train", folder, "-o", out, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in command])


@pytest.fixture
def suffixes(tmp_path):
    path = tmp_path / "suffixes.txt"
    path.write_text("I\nIt\nWe\nA\n")
    return path


def test_train_of_a_concept_is_that_of_its_pairs(folder, suffixes, tmp_path):
    out = tmp_path / "cat.safetensors"
    assert train(folder, out, "--concept", "cat", "--suffixes", suffixes).exit_code == 0
    model = introspect.load_model(folder)
    pairs = introspect.concept_pairs(model, "cat", suffixes.read_text().split())
    made = introspect.ControlVector.load(out)
    assert made == introspect.ControlVector.train(model, pairs) and made.concept == "cat"


def test_train_with_templates_and_with_words_of_ones_own(folder, suffixes, tmp_path):
    out = tmp_path / "x.safetensors"
    model = introspect.load_model(folder)

    def chats(request):
        system = {"role": "system", "content": ""}
        head = model.apply_chat_template([system, {"role": "user", "content": request}], add_generation_prompt=True)
        return [head + suffix for suffix in suffixes.read_text().split()]

    templates = ("--template", "Say {concept}!", "--template", "What of {concept}?")
    assert train(folder, out, "--concept", "cat", "--suffixes", suffixes, *templates).exit_code == 0
    pairs = [
        pair
        for template in ("Say {}!", "What of {}?")
        for pair in zip(chats(template.format("cat")), chats(template.format("anything")), strict=True)
    ]
    assert introspect.ControlVector.load(out) == introspect.ControlVector.train(model, pairs)
    arguments = ("--positive", "Be glad.", "--negative", "Be sad.", "--method", "mean_diff", "--suffixes", suffixes)
    assert train(folder, out, *arguments).exit_code == 0
    pairs = list(zip(chats("Be glad."), chats("Be sad."), strict=True))
    made = introspect.ControlVector.load(out)
    assert made == introspect.ControlVector.train(model, pairs, method="mean_diff") and made.concept == "Be glad."


def test_train_of_a_word_is_train_words(folder, tmp_path):
    out, words = tmp_path / "x.safetensors", tmp_path / "words.txt"
    words.write_text("dog\ncat\n\nhat\n")
    done = train(folder, out, "--word", "cat", "--baseline", words, "--template", "Of {word}.", "--json")
    assert done.exit_code == 0, done.output
    model = introspect.load_model(folder)
    made = introspect.ControlVector.load(out)
    assert made == introspect.ControlVector.train_words(model, "cat", ["dog", "hat"], template=["Of {word}."])
    assert made.concept == "cat" and json.loads(done.stdout)["concept"] == "cat"


def test_convert_keeps_everything(trained, tmp_path):
    trained.save(tmp_path / "a.gguf")
    assert invoke("convert", tmp_path / "a.gguf", "-o", tmp_path / "b.safetensors").exit_code == 0
    back = introspect.ControlVector.load(tmp_path / "b.safetensors")
    assert back == trained
    assert back.spectrum == trained.spectrum
    assert repr(back.diagnostics) == repr(trained.diagnostics)


def test_failures_end_with_one_line_and_their_exit_code(trained, tmp_path):
    good, bad, out = tmp_path / "a.gguf", tmp_path / "bad.gguf", tmp_path / "out.gguf"
    trained.save(good)
    bad.write_bytes(b"no vector")
    narrow = tmp_path / "narrow.gguf"
    introspect.ControlVector(trained.model_type, {1: torch.ones(4)}).save(narrow)
    zero = tmp_path / "zero.safetensors"
    introspect.ControlVector("llama", {0: torch.ones(4)}).save(zero)
    for code, arguments in [
        (2, ("show", tmp_path / "nowhere.gguf")),
        (2, ("combine", tmp_path / "nowhere.gguf", "-o", out)),
        (2, ("combine", f"much*{good}", "-o", out)),
        (2, ("combine", good)),
        (2, ("convert", good, "-o", tmp_path / "out.bin")),
        (1, ("show", bad)),
        (1, ("combine", good, narrow, "-o", out)),
        (1, ("convert", zero, "-o", out)),  # GGUF has no layer 0
    ]:
        done = invoke(*arguments)
        assert done.exit_code == code, (arguments, done.output)
        if code == 1:
            assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_the_picture_has_a_point_for_every_layer(trained):
    figure = plots.plot_vector(trained)
    told_apart, variance = figure.axes
    assert {line.get_label() for line in told_apart.lines} >= {"accuracy on held-out pairs", "AUC on held-out pairs"}
    assert list(told_apart.lines[0].get_xdata()) == trained.layers
    heights = [bar.get_height() for bar in variance.patches[: len(trained.layers)]]
    assert heights == pytest.approx([trained.spectrum[layer][0] for layer in trained.layers])
    with pytest.raises(ValueError, match="diagnostics"):
        plots.plot_vector(-trained)
