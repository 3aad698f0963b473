"""What a hub that lies, drips or never ends can do, and what stands in the folder of models before a download."""

import errno
import io
import json
import os
import threading
import time

import pytest
from local_hub import FILE, NAME, WEIGHTS

import introspect
from introspect import hub
from introspect.data import model_registry, other_models
from introspect.hub import download
from introspect.hub.model_names import aliases, what_is

pytest_plugins = ("local_hub",)  # its fixtures


def quiet(sentence):
    pass


def test_a_body_longer_than_stated_is_cut_off(server, folder, entry, monkeypatch):
    def endless(request, content):
        request.send_response(200)
        request.end_headers()  # no length: until the connection closes
        try:
            for _ in range(2000):
                request.wfile.write(WEIGHTS)
        except OSError:
            pass
        request.close_connection = True

    monkeypatch.setattr(server, "content", endless)
    with pytest.raises(introspect.IoError, match=r"sends more than the 2,304,000 bytes it has"):
        hub.pull(NAME, say=quiet)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= len(WEIGHTS)


def test_a_file_without_a_length_anywhere_is_not_fetched(server, folder, entry, monkeypatch):
    entry["bytes"] = entry["sha256"] = None
    listing = server.listing

    def without_sizes(request, repo, files):
        def hide(body):
            told = json.loads(body)
            for one in told["siblings"]:
                one.pop("size", None)
                one.get("lfs", {}).pop("size", None)
            return json.dumps(told).encode()

        out, request.wfile = request.wfile, io.BytesIO()
        request.wfile.flush = lambda: None
        listing(request, repo, files)
        body = hide(request.wfile.getvalue().split(b"\r\n\r\n", 1)[-1])
        request.wfile = out
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def endless(request, content):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(content)
        request.close_connection = True

    monkeypatch.setattr(server, "listing", without_sizes)
    monkeypatch.setattr(server, "content", endless)
    with pytest.raises(introspect.IoError):
        hub.pull(NAME, say=quiet)
    assert not (folder / FILE).exists()


def test_a_body_that_drips_is_given_up(server, folder, entry, monkeypatch):
    stop = threading.Event()

    def drips(request, content):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            for byte in content[:600]:
                request.wfile.write(bytes([byte]))
                request.wfile.flush()
                if stop.wait(0.05):
                    break
        except OSError:
            pass

    monkeypatch.setattr(server, "content", drips)
    monkeypatch.setattr(download, "SLOW_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(introspect.IoError, match=r"only \d+ bytes came in 1 s"):
        hub.pull(NAME, say=quiet)
    stop.set()
    assert time.monotonic() - start < 10


def test_a_hub_that_closes_after_every_byte_is_given_up(server, folder, entry, monkeypatch):
    server.cut_after = [1] * 10_000
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.5)
    with pytest.raises(introspect.IoError, match=r"bytes came in"):
        hub.pull(NAME, say=quiet)


@pytest.mark.parametrize("name", [".lock", FILE + ".part"])
def test_a_link_in_the_place_of_a_file_is_not_followed(server, folder, entry, tmp_path, name):
    folder.mkdir()
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (folder / name).symlink_to(target)
    with pytest.raises(introspect.IoError, match=f"{name} cannot be written"):
        hub.pull(NAME, say=quiet)
    assert target.read_bytes() == b"precious"


def test_a_fifo_in_the_place_of_a_file_does_not_hang(server, folder, entry):
    folder.mkdir()
    os.mkfifo(folder / (FILE + ".part"))
    with pytest.raises(introspect.IoError, match=r"\.part"):
        hub.pull(NAME, say=quiet)


def test_a_lock_that_is_there_is_left_as_it_is(server, folder, entry):
    folder.mkdir()
    (folder / ".lock").write_bytes(b"somebody's")
    hub.pull(NAME)
    assert (folder / ".lock").read_bytes() == b"somebody's"


def test_a_full_disk_names_the_file(server, folder, entry, monkeypatch):
    class Full(io.BytesIO):
        def write(self, chunk):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "open_part", lambda part, mode: Full())
    with pytest.raises(introspect.IoError, match=rf"{FILE}\.part cannot be written \(No space left on device\)"):
        hub.pull(NAME, say=quiet)


def test_a_folder_that_cannot_be_made_is_named(server, entry, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTROSPECT_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(introspect.IoError, match=r"file/models cannot be made"):
        hub.pull(NAME, say=quiet)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "[1]", "null", "not JSON", '["../../config.json"]'])
def test_a_broken_list_of_files_is_fetched_again(server, folder, text):
    server.files["maker/tiny"] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:5000]}
    path = hub.resolve("maker/tiny")
    (path / ".introspect-files.json").write_text(text)
    assert hub.resolve("maker/tiny") == path
    assert json.loads((path / ".introspect-files.json").read_text()) == ["config.json", "model.safetensors"]


def test_a_repository_of_an_adapter_is_said_to_be_one(server, folder):
    server.files["maker/lora"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    with pytest.raises(introspect.IoError, match="a PEFT adapter and no model: merge it"):
        hub.resolve("maker/lora")


# ---- names ----------------------------------------------------------------------------------------------------------


PATHS = ["./nofolder", "../nofolder", "~/nofolder", "/no/folder", "nofolder/", "./a/b", ".", ".."]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_not_there_is_said_to_be_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    if (tmp_path / name).exists():
        assert hub.resolve(name).exists()
    else:
        with pytest.raises(introspect.IoError, match="there is no file or folder"):
            hub.resolve(name)
    with pytest.raises(introspect.IoError, match="is the path of a file or folder"):
        hub.pull(name)


UNKNOWN_HERE = {
    "gelu-2l": "GELU layers", "attn-only-2l": "attention layers without MLPs", "solu-1l": "SoLU",
    "solu-1l-pile": "SoLU", "attn-only-2l-demo": "attention layers", "tiny-stories-1M": "GPT-Neo",
    "tiny-stories-instruct-33M": "GPT-Neo", "roneneldan/TinyStories-33M": "GPT-Neo", "gpt-neo-125M": "GPT-Neo",
    "EleutherAI/gpt-neo-1.3B": "GPT-Neo", "gpt-j": "GPT-J", "gemma-2b": "first-generation Gemma",
    "gemma-7b-it": "first-generation Gemma", "llama-7b": "first-generation LLaMA",
    "llama-65b-hf": "first-generation LLaMA", "opt-125m": "OPT", "facebook/opt-1.3b": "OPT", "bert": "an encoder",
    "bert-base-cased": "an encoder", "t5-small": "encoder and a decoder", "bloom-560m": "ALiBi",
    "santacoder": "BigCode",
    "qwen-7b-chat": "first-generation Qwen", "phi-2": "Phi", "olmoe-1b-7b-0924": "a mixture of experts",
    "deepseek-ai/DeepSeek-V3": "a mixture of experts", "othello-gpt": "Othello", "allenai/OLMo-7B-hf": "OLMo",
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN_HERE)
def test_a_model_that_is_not_run_is_said_to_be_what_it_is(monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody is asked
    for ask in (introspect.load_model, introspect.HookedTransformer.from_pretrained, hub.resolve, hub.pull):
        with pytest.raises(introspect.ConfigError, match=UNKNOWN_HERE[name]):
            ask(name)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("gpt2-small", "openai-community/gpt2"), ("pythia-125m", "EleutherAI/pythia-160m"), ("Yi-6B", "01-ai/Yi-6B"),
        ("qwen1.5-0.5b-chat", "Qwen/Qwen1.5-0.5B-Chat"), ("phi-4", "microsoft/phi-4"), ("mGPT", "ai-forever/mGPT"),
        ("stanford-gpt2-small-a", "stanford-crfm/alias-gpt2-small-x21"), ("codellama-7b", "codellama/CodeLlama-7b-hf"),
        ("stablelm-base-alpha-3b", "stabilityai/stablelm-base-alpha-3b"),
        ("pythia-160m-seed1", "EleutherAI/pythia-160m-seed1"),
    ],
)  # fmt: skip
def test_a_short_name_of_what_is_run_stands_for_its_hub_id(server, folder, name, repo):
    server.files[repo] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:100]}
    assert hub.resolve(name) == hub.resolve(repo)


def test_the_tables_of_names_do_not_contradict_each_other():
    for name, repo in aliases().items():
        assert name == name.lower()
        assert what_is(name) is None and what_is(repo) is None, name
    for name in model_registry():
        assert what_is(name) is None
    for kind in other_models():
        assert {"what", "why"} <= kind.keys() and (kind.get("names") or kind.get("prefixes"))
        for name in [*kind.get("names", ()), *kind.get("prefixes", ())]:
            assert name == name.lower(), name
