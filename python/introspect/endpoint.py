"""Language models on a server with OpenAI's chat completions. None is asked unless an Endpoint is given."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from . import _C


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's chat completions.

    Attributes:
        base_url: what stands before /chat/completions, such as "http://127.0.0.1:8080/v1".
        model: the name that the server knows the model by.
        api_key: sent as a bearer token; "": none. It appears in no repr and no message.
        timeout: seconds of a request.
        temperature: of sampling.
        max_tokens: of an answer.
    """

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    temperature: float = 0.0
    max_tokens: int = 500

    def ask(self, system: str, user: str) -> str:
        """The answer to one message.

        Raises:
            Error: no answer, saying what the server said.
            ValueError: an address that is not http or https.
        """
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"Endpoint: base_url must begin with http:// or https://, got {self.base_url!r}")
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = self.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace").strip()
            raise _C.Error(f"Endpoint: {url} answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise _C.Error(f"Endpoint: {url} gave no answer: {error}") from None
        try:
            return str(found["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise _C.Error(f"Endpoint: {url} answered without choices[0].message.content") from None
