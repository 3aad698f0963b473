"""Who may use the explorer's server, and what malicious requests get."""

import socket
import sys

import pytest
import synthetic_graph
import typer
from explorer_server import PROMPT, TOKEN, running

from introspect.cli import explore
from introspect.explorer import server, workspace
from introspect.explorer.fields import Fields, Refused
from introspect.explorer.security import POLICY


def test_a_folder_is_told_by_its_contents(folder, explorer):
    space = explorer.space
    assert space.model == str(folder / "model")
    assert {"sae": folder / "sae"} == space.dictionaries
    assert (list(space.graphs), list(space.runs), list(space.vectors)) == (["graph"], ["run"], ["cat"])


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model, dictionary"):
        workspace.find(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no"):
        workspace.find(str(tmp_path / "gone"), model="m")


def test_the_token_is_needed_everywhere(explorer):
    assert explorer.raw("GET", "/")[0] == 401
    for path in ("/api/contents", "/static/main.js", "/api/model", "/v1/capabilities", "/run/run/report"):
        assert explorer.raw("GET", path)[0] == 401
        assert explorer.raw("GET", path, None, {"x-secret-key": "wrong"})[0] == 401
        assert explorer.raw("GET", path, None, {"cookie": f"introspect_{explorer.port}=wrong"})[0] == 401
    assert explorer.raw("GET", f"/api/contents?token={TOKEN}")[0] == 401  # the address of the page alone may carry it
    assert explorer.raw("GET", "/health")[0] == 200


def test_the_address_gives_a_cookie_that_goes_on(explorer):
    status, headers, body = explorer.raw("GET", f"/?token={TOKEN}")
    assert status == 200 and b"<!doctype html>" in body
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert explorer.raw("GET", "/api/contents", None, {"cookie": cookie.split(";")[0]})[0] == 200
    assert explorer.raw("GET", "/api/contents", None, {"authorization": f"Bearer {TOKEN}"})[0] == 200


def test_other_hosts_and_other_pages_are_refused(explorer):
    known = {"x-secret-key": TOKEN}
    for host in ("evil.example", f"evil.example:{explorer.port}", "127.0.0.1", f"127.0.0.1:{explorer.port + 1}", ""):
        assert explorer.raw("GET", "/api/contents", None, {**known, "host": host})[0] in (400, 403), host
    for origin in ("http://evil.example", "null", f"http://localhost:{explorer.port}", "https://127.0.0.1"):
        assert explorer.raw("POST", "/api/model/tokens", b"{}", {**known, "origin": origin})[0] == 403, origin
    assert explorer.raw("GET", "/api/contents", None, {**known, "sec-fetch-site": "cross-site"})[0] == 403
    ours = {**known, "origin": f"http://127.0.0.1:{explorer.port}", "sec-fetch-site": "same-origin"}
    assert explorer.raw("GET", "/api/contents", None, ours)[0] == 200


def test_answers_carry_a_strict_policy(explorer):
    for path in (f"/?token={TOKEN}", "/health", "/static/none.js"):
        headers = explorer.raw("GET", path, None, {"x-secret-key": TOKEN})[1]
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY and "http" not in POLICY.replace("'self'", "")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd",
        "/api/graph/..%2f..%2fetc%2fpasswd", "/api/graph/%2e%2e", "/run/..%2f..%2f/report", "/api/run/%2fetc",
        "/api/dictionary/..%2fmodel", "/api/graph/graph.json", "/static/main.js%00.css",
    ],
)  # fmt: skip
def test_no_path_leaves_the_workspace(explorer, path):
    status, _, body = explorer.raw("GET", path, None, {"x-secret-key": TOKEN})
    assert status == 404
    assert b"root:" not in body and b"import" not in body


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("/api/model/tokens", b"not json", "must be JSON"),
        ("/api/model/tokens", b"[" * 50_000, "must be JSON"),
        ("/api/model/tokens", [1], "a JSON object is needed"),
        ("/api/model/tokens", {}, "prompt is missing"),
        ("/api/model/tokens", {"prompt": ""}, "empty"),
        ("/api/model/tokens", {"prompt": 5}, "prompt must be text"),
        ("/api/model/tokens", {"prompt": "\ud800"}, "surrogates"),
        ("/api/model/tokens", {"prompt": "x" * 200_001}, "at most 200,000 characters"),
        ("/api/model/tokens", {"prompt": "x" * 5_000}, "may have 2,048 tokens"),
        ("/api/model/lens", {"prompt": PROMPT, "top_k": 1e9}, "top_k must be a whole number from 1 to 50"),
        ("/api/model/lens", {"prompt": PROMPT, "first": -1}, "first must be"),
        ("/api/model/attention", {"prompt": PROMPT, "heads": [[99, 0]]}, "there is no head 99.0"),
        ("/api/model/attention", {"prompt": PROMPT, "heads": [[0, 0]] * 13}, "at most 12"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "shell"}}, "kind must be one of"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "vector", "name": "../x"}}, "no control vector"),
        ("/api/model/logits", {"prompt": PROMPT, "steer": {"kind": "word", "word": "a", "strength": 1e99}}, "strength"),
        ("/api/graph/graph/change", {"changes": [{"node": "none", "factor": 0}]}, "there is no node"),
    ],
)
def test_bad_requests_say_what_is_wrong(explorer, path, data, says):
    status, answer = explorer.post(path, data)
    assert status in (400, 404, 413)
    assert says in answer["error"]


def test_a_body_may_not_be_too_large(explorer):
    status, answer = explorer.post("/api/model/tokens", {"prompt": "x" * (9 << 20)})
    assert status == 413 and "8 MiB" in answer["error"]
    headers = {"x-secret-key": TOKEN, "content-length": "9" * 17}
    assert explorer.raw("POST", "/api/model/tokens", b"", headers)[0] == 413


def test_a_second_server_on_the_port_is_told_so(explorer):
    with pytest.raises(OSError, match=f"port {explorer.port} is taken by another introspect explore"):
        server.bind(explorer.port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(0.1)
        with pytest.raises(OSError, match="taken by another program"):
            server.bind(other.getsockname()[1])


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(typer.Exit):
        explore.command("anything")
    assert 'pip install "introspect[explore]"' in capsys.readouterr().err


def test_it_listens_on_the_loopback_address_only():
    with server.bind(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_numbers_are_whole_and_within_limits():
    fields = Fields({"topK": 5, "index": "12", "flag": 1, "many": [1, float("nan")]})
    assert fields.integer("top_k", 1, 10) == 5  # Neuronpedia's spelling
    assert fields.integer("index", 0, 100) == 12
    with pytest.raises(Refused, match="flag must be true or false"):
        fields.flag("flag")
    with pytest.raises(Refused, match="finite numbers"):
        fields.numbers("many", 5)


def test_a_server_without_a_model_says_so(tmp_path):
    synthetic_graph.write(tmp_path / "graph.json")
    with running(workspace.find(str(tmp_path / "graph.json"))) as alone:
        assert alone.get("api", "graph", "graph")[0] == 200
        status, answer = alone.post("/api/model/tokens", {"prompt": "a"})
        assert status == 409 and "no model was opened" in answer["error"]
        assert alone.get("api", "dictionary", "x")[0] == 409
