"""Who may see the page: sessions, the token that every form carries, and the headers of every page."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from tuneworthy.server.keys import Key, Keys

COOKIE = "tuneworthy"
SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 1000
"""The oldest go first."""
ATTEMPTS, ATTEMPTS_SECONDS = 10, 60.0
"""Wrong keys that one address may try in so many seconds."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Bars and charts place their parts by style attributes; rows' text never becomes one.
        "style-src-attr 'unsafe-inline'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Beside those that the guard gives to every answer."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who looks at the page. `token` stands in every form that changes something."""

    session: str
    token: str
    name: str | None
    """Of the key that was given; None where no key is needed, or before it was given."""
    inside: bool
    """Whether the page may be shown."""


class Door:
    """Sessions live in this process: after a restart the key is asked for again."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._secret = secrets.token_bytes(32)
        self._names: dict[str, tuple[str, float]] = {}
        """Hash of a session -> name of its key, and when it ends."""
        self._wrong: dict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether a key is needed: always where others can reach the server."""
        return bool(self.keys.every())

    def visitor(self, request: Request) -> Visitor:
        """Who asks; a new session for somebody new."""
        session = request.cookies.get(COOKIE, "")
        if len(session) != 43:
            session = secrets.token_urlsafe(32)
        name = self._name(session)
        return Visitor(session, self._token(session), name, name is not None or not self.closed)

    def admits(self, visitor: Visitor, token: str) -> bool:
        """Whether a form came from a page of this visitor's."""
        return hmac.compare_digest(visitor.token.encode(), token.encode())

    def enter(self, key: str, address: str) -> tuple[str | None, str]:
        """A new session for whoever has an admin's key: its secret, or None and the reason."""
        now = time.monotonic()
        with self._lock:
            wrong = self._wrong[address]
            while wrong and wrong[0] < now - ATTEMPTS_SECONDS:
                wrong.popleft()
            if len(wrong) >= ATTEMPTS:
                return None, "Too many wrong keys from your address; wait a minute."
            found = self.keys.find(key.strip())
            if found is None or not found.allows("admin"):
                wrong.append(now)
                return None, _why(found)
            session = secrets.token_urlsafe(32)
            while len(self._names) >= MOST_SESSIONS:
                del self._names[next(iter(self._names))]
            self._names[_hash(session)] = found.name, now + SESSION_SECONDS
        return session, ""

    def leave(self, visitor: Visitor) -> None:
        with self._lock:
            self._names.pop(_hash(visitor.session), None)

    def _name(self, session: str) -> str | None:
        with self._lock:
            name, until = self._names.get(_hash(session), (None, 0.0))
        if name is None or time.monotonic() > until:
            return None
        # A key that was removed, or may do less now, closes the sessions that it opened.
        return (
            name if any(k.name == name and k.allows("admin") for k in self.keys.every()) else None
        )

    def _token(self, session: str) -> str:
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()


def keep(response: Response, request: Request, session: str) -> None:
    """Let the browser carry the session, here and nowhere else."""
    response.set_cookie(
        COOKIE,
        session,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _why(key: Key | None) -> str:
    if key is None:
        return "This key is not known here."
    return f"The key '{key.name}' has the scope {key.scope}; the page needs admin."


def _hash(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()
