"""Who may use the server: this machine's user, by a token; no other page of the browser, and no other host's name.

Every request passes ``Guard``:

- Host must name the loopback address and our port, so that a page which rebinds its name to 127.0.0.1 gets nothing;
- Origin, where there is one, must be ours, and a browser must say that the request came from our page;
- the token must be in the cookie (or, for scripts, in the header x-secret-key or as a bearer token). The address that
  is printed carries it once; the page takes it out of the address bar and goes on with the cookie;
- a body may have ``MOST_BODY`` bytes.

Answers carry a content security policy that lets the page load its own files and nothing else.
"""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse

MOST_BODY = 8 << 20  # bytes
OPEN = {"/health"}  # says that a server is here, and nothing else
NAMES = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}
# Of a report, which is a file of a run's folder with scripts in it: it may draw itself, and reach nothing.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; frame-ancestors 'self'"
)
NEEDS_TOKEN = (
    "This page needs its token. Open the address that `introspect explore` printed in the terminal; it holds the token."
)


class _TooLarge(Exception):
    pass


class Guard:
    """The checks above around an ASGI application."""

    def __init__(self, app: Any, *, token: str, port: int) -> None:
        self.app, self.token, self.port = app, token, port
        self.cookie = f"introspect_{port}"
        self.hosts = {f"{name}:{port}" for name in NAMES}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"explorer: only HTTP is served, got {scope['type']}")
        headers = Headers(scope=scope)
        problem = self._problem(scope, headers)
        if problem is not None:
            await self._with_headers(problem)(scope, receive, send)
            return
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BODY:
                raise _TooLarge
            return message

        started = False

        async def guarded_send(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                out = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    if name not in out:
                        out[name] = value
                if scope["path"] == "/":
                    attributes = "Path=/; HttpOnly; SameSite=Strict"
                    out.append("set-cookie", f"{self.cookie}={self.token}; {attributes}")
            await send(message)

        try:
            await self.app(scope, limited, guarded_send)
        except _TooLarge:
            if not started:
                await self._with_headers(_too_large())(scope, receive, send)

    def _problem(self, scope: Any, headers: Headers) -> Any:
        """The answer to a request that is refused; None for one that may pass."""
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            return _refusal(f"Host must be 127.0.0.1:{self.port} or localhost:{self.port}, got {host[:80]!r}", 403)
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}":
            return _refusal(f"requests of other pages are refused, got Origin {origin[:80]!r}", 403)
        is_page = scope["path"] == "/" and scope["method"] == "GET"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_page:
            return _refusal("requests of other pages are refused", 403)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or len(length) > 18:
            return _refusal("Content-Length must be a number", 400)
        if int(length) > MOST_BODY:
            return _too_large()
        if scope["path"] in OPEN:
            return None
        if not self._knows_token(scope, headers, is_page):
            return PlainTextResponse(NEEDS_TOKEN, 401) if is_page else _refusal(NEEDS_TOKEN, 401)
        return None

    def _knows_token(self, scope: Any, headers: Headers, is_page: bool) -> bool:
        given = [headers.get("x-secret-key", ""), headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if self.cookie in cookies:
            given.append(cookies[self.cookie].value)
        if is_page:
            given += parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        expected = self.token.encode()
        return any(secrets.compare_digest(one.encode("utf-8", "replace"), expected) for one in given)

    @staticmethod
    def _with_headers(response: Any) -> Any:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def _refusal(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _too_large() -> JSONResponse:
    return _refusal(f"a request may have {MOST_BODY >> 20} MiB, and this one has more", 413)


def new_token() -> str:
    return secrets.token_urlsafe(24)
