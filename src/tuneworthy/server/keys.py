"""Keys that callers carry: shown once, kept as hashes, each with a scope and limits of its own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from tuneworthy import store
from tuneworthy.errors import ProjectError

Scope = Literal["infer", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each allows what those before it do."""
WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; the key itself is not."""

    name: str
    scope: Scope
    salt: str
    hash: str
    created: str
    requests_per_minute: int
    tokens_per_minute: int

    def allows(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def _hash(salt: str, key: str) -> str:
    # Keys are 256 random bits: there is nothing to guess, so a fast hash is enough.
    return hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()


class Keys:
    """The keys of a state folder; the file is read again when it has changed."""

    def __init__(self, state: Path) -> None:
        self.path = state / "keys.json"
        self._read_at: tuple[int, int] | None = None
        self._keys: list[Key] = []

    def every(self) -> list[Key]:
        if not self.path.exists():
            return []
        status = self.path.stat()
        stamp = status.st_mtime_ns, status.st_ino
        if stamp != self._read_at:
            self._keys = [Key(**record) for record in store.read_json(self.path)["keys"]]
            self._read_at = stamp
        return self._keys

    def add(
        self,
        name: str,
        scope: Scope,
        *,
        requests_per_minute: int = 600,
        tokens_per_minute: int = 1_000_000,
    ) -> str:
        """A new key, to be shown once. Raises ProjectError if there is one of this name."""
        key, salt = f"tw-{secrets.token_urlsafe(32)}", secrets.token_hex(16)
        made = Key(
            name=name,
            scope=scope,
            salt=salt,
            hash=_hash(salt, key),
            created=store.now(),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        with self._locked():
            known = self.every()
            if any(other.name == name for other in known):
                raise ProjectError(
                    f"there is a key '{name}' already", hint=f"tuneworthy keys remove {name}"
                )
            self._write([*known, made])
        return key

    def remove(self, name: str) -> None:
        """Raises ProjectError if there is none of this name."""
        with self._locked():
            known = self.every()
            rest = [key for key in known if key.name != name]
            if len(rest) == len(known):
                raise ProjectError(f"there is no key '{name}'", hint="tuneworthy keys list")
            self._write(rest)

    def find(self, given: str) -> Key | None:
        """The key that was given; every one is compared, in constant time."""
        found = None
        for key in self.every():
            if hmac.compare_digest(_hash(key.salt, given), key.hash):
                found = key
        return found

    def _locked(self) -> FileLock:
        with store.guarded(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(".keys.lock"))

    def _write(self, keys: list[Key]) -> None:
        store.write_json(self.path, {"keys": [asdict(key) for key in keys]})
        self.path.chmod(0o600)


class Limits:
    """What each key has used within the last minute."""

    def __init__(self) -> None:
        self._used: dict[str, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()

    def wait(self, key: Key, now: float | None = None) -> float | None:
        """Count a request; seconds to wait where the key has had its share, else None."""
        now = time.monotonic() if now is None else now
        with self._lock:
            used = self._used.setdefault(key.name, deque())
            while used and used[0][0] <= now - WINDOW_SECONDS:
                used.popleft()
            requests = sum(tokens == 0 for _, tokens in used)
            spent = sum(tokens for _, tokens in used)
            if requests >= key.requests_per_minute or spent >= key.tokens_per_minute:
                return max(1.0, used[0][0] + WINDOW_SECONDS - now)
            used.append((now, 0))
            return None

    def spend(self, key: Key, tokens: int) -> None:
        if tokens > 0:
            with self._lock:
                self._used.setdefault(key.name, deque()).append((time.monotonic(), tokens))
