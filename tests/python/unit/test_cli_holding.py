"""--weights and --keep-blocks of the command line: what load_model is given, and what is refused before it."""

import json

import pytest
import typer
from quantised import write_quantised
from tiny_chat import write_tiny_chat
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app

LOADS = {"info", "generate", "run", "sweep", "dose", "train", "lens", "heads", "patch", "probe", "profile", "explore"}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 24}
    return write_quantised(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", ("Q4_1", "Q8_0"), **sizes)


@pytest.fixture
def loaded(monkeypatch):
    """The options that models are loaded with."""
    seen, load = [], introspect.load_model

    def noting(source, **options):
        seen.append({name: value for name, value in options.items() if name in ("weights", "keep_blocks")})
        return load(source, **options)

    monkeypatch.setattr(introspect, "load_model", noting)
    return seen


def ran(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def commands(group, name=()):
    """(name, command) of all that can be run."""
    for word, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*name, word))
    if not hasattr(group, "commands"):
        yield " ".join(name), group


def test_every_command_that_loads_a_model_has_both():
    found = dict(commands(typer.main.get_command(app)))
    loading = []
    for name, command in found.items():
        options = {option for p in command.params for option in p.opts + p.secondary_opts}
        both = {"--weights", "--keep-blocks", "--no-keep-blocks"}
        loads = "--dtype" in options and name != "sae convert"  # which is told the dtype of a dictionary
        assert options & both == (both if loads else set()), name
        loading += [name] if loads else []
    assert set(loading) >= LOADS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"weights": None, "keep_blocks": None}),
        (["--weights", "dense"], {"weights": "dense", "keep_blocks": None}),
        (["--weights", "as-stored"], {"weights": "as stored", "keep_blocks": None}),
        (["--keep-blocks"], {"weights": None, "keep_blocks": True}),
        (["--no-keep-blocks", "--weights", "as-stored"], {"weights": "as stored", "keep_blocks": False}),
    ],
)
def test_the_model_is_loaded_so(loaded, quantised, given, expected):
    plain = introspect._C.Model.load(
        quantised, **{name: value for name, value in expected.items() if value is not None}
    )
    out = ran("info", quantised, "--json", *given)
    assert out.exit_code == 0, out.output
    assert loaded == [expected]
    assert json.loads(out.stdout)["weight_bytes"] == plain.nbytes


def test_a_command_leaves_nothing_to_the_next(loaded, quantised):
    ran("info", quantised, "--weights", "as-stored", "--no-keep-blocks")
    introspect.cli.common.load_model(str(quantised), introspect.cli.common.Dtype.float32, "cpu")
    assert loaded == [{"weights": "as stored", "keep_blocks": False}, {}]


@pytest.mark.parametrize("wrong", [["--weights", "as stored"], ["--weights", "half"], ["--keep-blocks=2"]])
def test_other_values_end_with_2_before_anything_loads(loaded, quantised, wrong):
    assert ran("info", quantised, *wrong).exit_code == 2
    assert not loaded


def test_weights_that_a_folder_does_not_have_are_said_in_a_line(tmp_path):
    out = ran("info", write_tiny_chat(tmp_path / "model"), "--weights", "as-stored")
    assert out.exit_code == 1 and "is for GGUF files" in out.output
