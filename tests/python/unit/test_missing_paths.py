"""A path that is not there, given to any command or reader, is said to be missing, at once, and no hub is asked."""

import time

import pytest
from local_hub import Hub
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.sae import SAE, CrossLayerTranscoder

COMMANDS = {
    "generate": ["generate", "{missing}", "text"],
    "info": ["info", "{missing}"],
    "heads": ["heads", "{missing}"],
    "lens": ["lens", "{missing}", "text"],
    "explore": ["explore", "{missing}"],
    "sae eval, the dictionary": ["sae", "eval", "{model}", "{missing}", "{texts}"],
    "sae eval, the model": ["sae", "eval", "{missing}", "{sae}", "{texts}"],
    "sae show": ["sae", "show", "{model}", "{missing}", "{texts}"],
    "sae convert": ["sae", "convert", "{missing}", "-o", "{out}"],
    "sae train": ["sae", "train", "{missing}", "{texts}", "--hook", "blocks.0.hook_resid_post", "--out", "{out}"],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that counts what it is asked, and a working folder with models/ and saes/ in it."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("INTROSPECT_MODELS", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("models", "saes"):
        (tmp_path / name).mkdir()
    yield hub
    hub.server.shutdown()


@pytest.fixture
def words(tmp_path):
    import torch

    (tmp_path / "texts.txt").write_text("some text\n")
    SAE(torch.eye(4), torch.eye(4), hook_name="blocks.0.hook_resid_post").save(tmp_path / "saes" / "here")
    return {"model": "models/gone", "sae": "saes/here", "texts": "texts.txt", "out": "out", "missing": "saes/gone"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_at_once_that_a_path_is_not_there(hub, words, command):
    since = time.monotonic()
    result = CliRunner().invoke(app, [part.format(**words) for part in COMMANDS[command]])
    assert result.exit_code in (1, 2) and time.monotonic() - since < 5
    assert "saes/gone" in result.output.replace("\n", ""), result.output
    assert "no file or folder" in " ".join(result.output.split()) or "does not exist" in result.output, result.output
    assert hub.requests == []


@pytest.mark.parametrize("read", [introspect.load_model, SAE.from_pretrained, CrossLayerTranscoder.from_pretrained])
def test_so_do_the_functions_behind_them(hub, read):
    with pytest.raises(introspect.IoError, match="no file or folder saes/gone"):
        read("saes/gone")
    with pytest.raises(introspect.Error, match="nope"):
        read("nope")
    assert hub.requests == []


def test_a_name_that_no_folder_here_begins_is_still_a_repository(hub):
    with pytest.raises(introspect.IoError, match="no public repository owner/gone"):
        introspect.load_model("owner/gone")
    assert hub.requests != []
    with pytest.raises(introspect.IoError):  # a path within a repository is asked for by its id
        SAE.from_pretrained("saes/gone", "layer_3")
    assert any("saes/gone" in path for path, _ in hub.requests)
