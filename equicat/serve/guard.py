"""Who may talk to the page: browsers on this machine that know its key, and no other page in them.

- The server is bound to 127.0.0.1. A client that is not on the loopback network is refused all the same.
- The ``Host`` must be this machine: a name of somebody else that points here (DNS rebinding) is refused.
- The key, in the address that the terminal shows, becomes a cookie: other users of this machine can reach the port, but
  do not know the key.
- What changes something must come from this page itself: its ``Origin`` is compared with the ``Host``.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""``Host`` of this machine; any port, because `ssh -L` may put another one in front."""
SAFE = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Headers of every answer that does not bring its own."""


class Guard:
    """An ASGI application around another, which lets through what may talk to it.

    Args:
        app: the application.
        key: the secret of the address.
    """

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key
        self.cookie = f"equicat_{hashlib.sha256(key.encode()).hexdigest()[:8]}"  # cookies know no ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        answer: ASGIApp = self.app
        refusal = self.not_from_here(request)
        if not refusal and request.url.path == "/" and self._is_key(request.query_params.get("key", "")):
            answer = redirect = RedirectResponse("/", status_code=303)
            redirect.set_cookie(self.cookie, self.key, max_age=365 * 86400, httponly=True, samesite="strict")
        elif refusal or not self._is_key(request.cookies.get(self.cookie, "")):
            text = refusal or "Open the address that `equicat serve` printed; it ends in the key of this page."
            answer = PlainTextResponse(f"{text}\n", status_code=403)
        await answer(scope, receive, _with_headers(send))

    def not_from_here(self, request: Request) -> str:
        """Reason why a request is not from a page of ours on this machine; empty if it is."""
        if request.client is None or not _is_loopback(request.client.host):
            return "This page answers its own machine only."
        host = request.headers.get("host", "")
        if not HOST.fullmatch(host):
            return "This page is called localhost or 127.0.0.1, and answers to no other name."
        if request.method not in SAFE and request.headers.get("origin") != f"http://{host}":
            return "Changes come from this page itself, not from another one."
        if request.method not in SAFE and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "Changes come from this page itself, not from another one."
        return ""

    def _is_key(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.key.encode())


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    """``send`` that adds :data:`HEADERS` to the start of an answer, but for those that it has."""

    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in there)]
        await send(message)

    return adding
