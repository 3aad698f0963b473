"""`introspect vector`: what a file holds, weighted sums, the other format, and how failures end."""

import json

import pytest
import torch
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect import plots
from introspect.cli.app import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["vector", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"))
    pairs = introspect.concept_pairs(model, "cat", ["I", "It", "We", "A", "The", "So"])
    return introspect.ControlVector.train(model, pairs)


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
    assert json.loads(invoke("show", path, "--json").stdout)["layers"][0]["auc"] is None


def test_combine_is_the_weighted_sum(tmp_path):
    a, b = (introspect.ControlVector("llama", {1: torch.randn(8), k: torch.randn(8)}) for k in (2, 3))
    a.save(tmp_path / "a.gguf")
    b.save(tmp_path / "b.safetensors")
    terms = [f"0.5*{tmp_path / 'a.gguf'}", f"-2*{tmp_path / 'b.safetensors'}"]
    done = invoke("combine", "-o", tmp_path / "c.gguf", "--", *terms)
    assert done.exit_code == 0
    assert introspect.ControlVector.load(tmp_path / "c.gguf") == 0.5 * a + -2 * b


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
