"""Stands before every route: who asks, from where, how much; and what every answer carries."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tuneworthy.server.keys import Key, Keys, Limits, Scope

Scope_ = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope_, Receive, Send], Awaitable[None]]

BODY_BYTES = 8 * 2**20
"""Of a request that is no upload; uploads have a limit of their own."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/health",)
HEADERS = {
    "x-content-type-options": "nosniff",
    # Not no-referrer: with it browsers hide where a form of our own page comes from.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Where a route sets none of its own: nothing of ours loads anything."""


class Metrics:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tuneworthy_requests", "Requests", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "tuneworthy_request_seconds", "Seconds of a request", registry=self.registry
        )
        self.running = Gauge(
            "tuneworthy_requests_running", "Requests under way", registry=self.registry
        )
        self.tokens = Counter(
            "tuneworthy_tokens", "Tokens read and said", ["kind"], registry=self.registry
        )


class Refused(Exception):
    """A request that goes no further."""

    def __init__(
        self, status: int, text: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.text, self.code, self.headers = status, text, code, headers or {}


def _too_large() -> Refused:
    return Refused(413, f"a request may have {BODY_BYTES:,} bytes", "request_too_large")


def scope_of(path: str) -> Scope | None:
    """What a key must allow for a path; None where the page has its own door."""
    if path.startswith(("/v1/files", "/v1/fine_tuning")):
        return "train"
    if path.startswith("/v1/") or path in ("/metrics", "/openapi.json"):
        return "infer"
    if path.startswith("/api/"):
        return "admin"
    return None


class Guard:
    """An ASGI application around another one. Streams pass through it untouched."""

    def __init__(
        self, app: App, keys: Keys, metrics: Metrics, *, hosts: tuple[str, ...] | None
    ) -> None:
        """`hosts` are the names that this server answers to; None: all (it is behind a key)."""
        self.app, self.keys, self.metrics, self.hosts = app, keys, metrics, hosts
        self.limits = Limits()

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self._check_place(scope, headers)
            if scope["type"] == "http":
                scope.setdefault("state", {})["key"] = self._known(scope, headers)
                receive = self._limited(scope, headers, receive)
        except Refused as refused:
            await self._refuse(scope, send, refused)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope_, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 500
        api = scope_of(scope["path"]) is not None

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if scope["state"].get("too_large"):
                    raise _too_large()  # whatever the route has made of half a body
                status = message["status"]
                message["headers"] = [*message["headers"], *_added(message["headers"], api)]
            await send(message)

        self.metrics.running.inc()
        try:
            await self.app(scope, receive, watched)
        except Refused as refused:
            status = refused.status
            await self._refuse(scope, send, refused)
        finally:
            self.metrics.running.dec()
            # The route's own pattern: what callers make up would fill the memory.
            route = getattr(scope.get("route"), "path", "unknown") if api else "page"
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.observe(time.perf_counter() - began)

    def _check_place(self, scope: Scope_, headers: dict[str, str]) -> None:
        """Against pages of other sites, and names that others have pointed at this machine."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self.hosts is not None and name not in self.hosts:
            raise Refused(421, f"this server does not answer to the host '{name[:80]}'")
        origin = headers.get("origin")
        unsafe = scope["type"] == "websocket" or scope.get("method") not in SAFE
        if unsafe and origin and urlsplit(origin).netloc != host:
            raise Refused(403, "a page of another site may not do this")

    def _known(self, scope: Scope_, headers: dict[str, str]) -> Key | None:
        """The caller's key, where one is needed: anywhere but on a loopback without keys."""
        wanted = scope_of(scope["path"])
        if wanted is None or scope["path"] in OPEN or not self.keys.every():
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = self.keys.find(given.strip()) if kind.lower() == "bearer" and given else None
        if key is None:
            raise Refused(
                401, "no valid API key was given", "invalid_api_key", {"www-authenticate": "Bearer"}
            )
        if not key.allows(wanted):
            text = f"the key '{key.name}' has the scope {key.scope}, this needs {wanted}"
            raise Refused(403, text, "insufficient_scope")
        seconds = self.limits.wait(key)
        if seconds is not None:
            text = f"the key '{key.name}' has had its share for this minute"
            wait = {"retry-after": str(int(seconds + 1))}
            raise Refused(429, text, "rate_limit_exceeded", wait)
        return key

    def _limited(self, scope: Scope_, headers: dict[str, str], receive: Receive) -> Receive:
        if scope["path"].startswith("/v1/files"):
            return receive
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > BODY_BYTES:
            raise _too_large()
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES:
                scope["state"]["too_large"] = True
                raise _too_large()
            return message

        return counted

    async def _refuse(self, scope: Scope_, send: Send, refused: Refused) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            refused.status, "invalid_request_error"
        )
        error = {"message": refused.text, "type": kind, "param": None, "code": refused.code}
        body = json.dumps({"error": error}).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        head += [(k.encode(), v.encode()) for k, v in refused.headers.items()]
        head += _added(head, True)
        await send({"type": "http.response.start", "status": refused.status, "headers": head})
        await send({"type": "http.response.body", "body": body})


def _added(headers: list[tuple[bytes, bytes]], api: bool) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in headers}
    added = HEADERS | {"content-security-policy": POLICY}
    if api:
        added |= {"cache-control": "no-store"}
    return [(k.encode(), v.encode()) for k, v in added.items() if k.encode() not in there]
