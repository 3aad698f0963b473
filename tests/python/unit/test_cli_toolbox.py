"""``introspect heads`` and ``introspect lens``: what their functions give, as a table, JSON, a picture and a page."""

import json

import pytest
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.analysis import classify_heads, logit_lens
from introspect.cli.app import app

TEXT = "my dog eats bread and"
COMMANDS = {"heads": ["--tokens", "8", "--sequences", "2", "--no-copying"], "lens": [TEXT, "--top", "3"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"))


def run(command, folder, *arguments):
    first, *rest = COMMANDS[command] if command == "lens" else [None, *COMMANDS[command]]
    positional = [str(folder)] + ([first] if first else [])
    result = CliRunner().invoke(app, [command, *positional, *rest, *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_scores_of_heads_are_the_functions(folder):
    facts = json.loads(run("heads", folder, "--json"))
    model = introspect.load_model(folder)
    table = classify_heads(model, n_tokens=8, n_sequences=2, copying=False)
    assert len(facts["heads"]) == model.cfg.n_layers * model.cfg.n_heads
    found = {(head["layer"], head["head"]): head for head in facts["heads"]}
    for at, expected in table.to_dict().items():
        assert found[at]["type"] == expected["type"]
        assert found[at]["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_layers_of_the_lens_are_the_functions(folder):
    facts = json.loads(run("lens", folder, "--json"))
    table = logit_lens(introspect.load_model(folder), TEXT, top_k=3, positions=[-1])
    assert [layer["stream"] for layer in facts["layers"]] == list(table.streams)
    for layer, tokens in zip(facts["layers"], table.top_tokens, strict=True):
        assert [one["token"] for one in layer["top"]] == list(tokens[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_files_are_a_picture_a_table_and_a_page_that_needs_no_other(command, folder, tmp_path):
    names = [tmp_path / name for name in ("out.png", "out.csv", "out.html")]
    run(command, folder, *[part for name in names for part in ("-o", name)])
    assert names[0].read_bytes().startswith(b"\x89PNG")
    assert "layer" in names[1].read_text().splitlines()[0]
    page = names[2].read_text()
    assert "data:image/png;base64," in page and "http" not in page
