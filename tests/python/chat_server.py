"""A local server with OpenAI's chat completions, whose answers a test decides."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from introspect.endpoint import Endpoint


class ChatServer:
    """Answers with what ``reply(system, user)`` says, and keeps what was asked."""

    def __init__(self):
        self.asked, self.reply, self.status = [], lambda system, user: "", 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({"path": self.path, "headers": dict(self.headers), "body": body})
                system, user = (message["content"] for message in body["messages"])
                content = outer.reply(system, user)
                answer = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = json.dumps(answer if content is not None else {"no": "choices"}).encode()
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.http.server_port}/v1", "judge", api_key="secret")


@contextlib.contextmanager
def serving():
    """A ChatServer that answers until the block ends."""
    made = ChatServer()
    thread = threading.Thread(target=made.http.serve_forever, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()
