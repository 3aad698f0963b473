"""A running explorer for tests: a server on a free loopback port, and requests to it as a script sends them."""

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch

import introspect
from introspect.explorer import server, workspace
from introspect.explorer.dictionaries import Dictionaries
from introspect.explorer.session import Session

TOKEN = "a-token-of-the-tests"
PROMPT = "a cat ate bread"
SCRIPT = "<script>document.title='stolen'</script>"


@dataclass
class Running:
    port: int
    space: workspace.Workspace
    session: Session | None
    worker: object

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def raw(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
        """(status, headers, body) with exactly these headers, and the token only if they hold it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, *parts: str):
        status, _, body = self.raw("GET", "/" + "/".join(quote(p, safe="") for p in parts), None, self._headers)
        return status, json.loads(body)

    def post(self, path: str, data, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        status, _, answer = self.raw("POST", path, body, {**self._headers, **headers})
        return status, json.loads(answer)

    def stream(self, path: str, data) -> list[dict]:
        status, _, body = self.raw("POST", path, json.dumps(data).encode(), self._headers)
        assert status == 200, body
        return [json.loads(part.removeprefix("data: ")) for part in body.decode().split("\n\n") if part]

    @property
    def _headers(self) -> dict:
        return {"x-secret-key": TOKEN, "content-type": "application/json"}


@contextlib.contextmanager
def running(space: workspace.Workspace):
    """The server of a workspace, and its end."""
    import uvicorn

    listener = server.bind(0)
    port = listener.getsockname()[1]
    session = Session(introspect.load_model(space.model), space) if space.model else None
    dictionaries = Dictionaries(space, session) if space.dictionaries or space.cross_layer else None
    if session:
        session.dictionaries = dictionaries
    app = server.build(space, session, token=TOKEN, port=port, dictionaries=dictionaries)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none")
    running_server = uvicorn.Server(config)
    running_server.config.load()
    thread = threading.Thread(target=running_server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Running(port, space, session, app.state.worker)
    finally:
        app.state.worker.stop()
        running_server.should_exit = True
        thread.join(10)


def write_dictionary(folder: Path, *, d_model: int = 32, d_sae: int = 40, layer: int = 1, k: int = 4) -> Path:
    """A random top-k dictionary of the residual stream after a block."""
    rng = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=rng), dim=1)
    sae = introspect.SAE(
        rows.T.contiguous(), rows, torch.zeros(d_sae), torch.zeros(d_model), architecture="topk", k=k,
        hook_name=f"blocks.{layer}.hook_resid_post", model_name="model",
    )  # fmt: skip
    sae.save(folder)
    return folder
