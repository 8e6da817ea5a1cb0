"""Clients of a server in one event loop, as light as can be: the machine that serves runs them, too."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

PATIENCE_SECONDS = 120.0
"""A request that takes longer has failed."""
SMALL_BUFFER = 4096


@dataclass(slots=True)
class Told:
    """What came of one request. `failure` says what went wrong, if anything did."""

    row: int
    began: float
    first: float | None = None
    """Seconds to the first piece of text."""
    seconds: float = 0.0
    text: str = ""
    tokens: int = 0
    cached: int = 0
    pieces: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Server:
    """Where requests go to, and what is asked for."""

    port: int
    model: str
    prompts: Sequence[Sequence[dict[str, str]]]

    def request(self, row: int, **more: Any) -> bytes:
        body = {
            "model": self.model,
            "messages": self.prompts[row],
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        return _post(self.port, json.dumps(body).encode())

    async def ask(self, row: int, *, leave_after: int | None = None, **more: Any) -> Told:
        """One streamed answer; `leave_after` so many pieces the connection is torn."""
        told = Told(row, time.perf_counter())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._ask(told, leave_after, self.request(row, **more))
        except (OSError, ValueError, KeyError, TimeoutError, asyncio.IncompleteReadError) as error:
            told.failure = f"{type(error).__name__}: {error}"
        told.seconds = time.perf_counter() - told.began
        return told

    async def _ask(self, told: Told, leave_after: int | None, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            status = await reader.readline()
            if b" 200 " not in status:
                raise ValueError((status + await reader.read(2000)).decode(errors="replace"))
            async for line in reader:
                if not line.startswith(b"data: "):
                    continue  # heads and sizes of chunks; no event is cut
                if line.startswith(b"data: [DONE]"):
                    return
                _take(told, json.loads(line[6:]))
                if leave_after is not None and told.pieces >= leave_after:
                    writer.transport.abort()
                    return
            raise ValueError("the stream ended before its end")
        finally:
            writer.close()


def _post(port: int, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _take(told: Told, event: dict[str, Any]) -> None:
    if "error" in event:
        raise ValueError(event["error"]["message"])
    if event.get("usage"):
        told.tokens = event["usage"]["completion_tokens"]
        told.cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    for choice in event["choices"]:
        piece = choice["delta"].get("content")
        if piece:
            told.pieces += 1
            told.text += piece
            if told.first is None:
                told.first = time.perf_counter() - told.began


@dataclass
class Crowd:
    """Many clients, each of which asks the next row as soon as it has its answer."""

    server: Server
    clients: int
    told: list[Told] = field(default_factory=list)
    _next: int = 0

    async def work(self, seconds: float, beat: Callable[[], None] = lambda: None) -> float:
        """Ask for so long; what was begun is waited for. Completed tokens a second meanwhile."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._client(began + seconds))
            while time.perf_counter() < began + seconds:
                await asyncio.sleep(1.0)
                beat()
        return self.rate(began, began + seconds)

    async def _client(self, until: float) -> None:
        while time.perf_counter() < until:
            row, self._next = self._next, self._next + 1
            self.told.append(await self.server.ask(row % len(self.server.prompts)))

    def rate(self, begin: float, end: float) -> float:
        """Tokens a second. Of an answer that lies partly within the time, that part of its tokens."""
        tokens = 0.0
        for told in self.told:
            if told.failure is None and told.seconds > 0:
                inside = min(end, told.began + told.seconds) - max(begin, told.began)
                tokens += told.tokens * max(0.0, inside) / told.seconds
        return tokens / (end - begin)

    @property
    def failures(self) -> list[str]:
        return [told.failure for told in self.told if told.failure]


class SlowReader:
    """Asks, and then reads nothing: the server may not wait for it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.writers: list[asyncio.StreamWriter] = []

    async def ask(self, row: int, **more: Any) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.server.port, limit=SMALL_BUFFER
        )
        writer.write(self.server.request(row, **more))
        await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        self.writers.append(writer)

    def leave(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered)) - 1))]
