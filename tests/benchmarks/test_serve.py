"""The serving benchmark: its clients on a server of tests, and the whole of it on the fake base."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _common
import _jobs
import _serve_ours
import pytest
import serve
from _clients import Crowd, Server, Told, percentile
from _common import Progress

from tests.fakes import projects

PROMPTS = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]


def event(**more: Any) -> str:
    return f"data: {json.dumps({'choices': [], **more})}\n\n"


def piece(text: str) -> str:
    return event(choices=[{"delta": {"content": text}}])


USAGE = event(usage={"completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}})
WHOLE = [piece("a"), piece("b"), USAGE, "data: [DONE]\n\n"]


async def _told(events: list[str], status: str = "200 OK", **how: Any) -> tuple[Told, bool]:
    """What a client makes of these events, and whether it read to their end."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for text in events:
                writer.write(f"{len(text):x}\r\n{text}\r\n".encode())
                await writer.drain()
                await asyncio.sleep(0.01)
            ended.set()
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        told = await Server(port, "m", PROMPTS).ask(1, **how)
    return told, ended.is_set()


def told_of(events: list[str], **how: Any) -> Told:
    return asyncio.run(_told(events, **how))[0]


def test_a_client_puts_the_pieces_together() -> None:
    told = told_of(WHOLE)
    assert (told.text, told.tokens, told.cached, told.pieces) == ("ab", 2, 1, 2)
    assert told.failure is None and told.first is not None and told.first <= told.seconds


@pytest.mark.parametrize(
    ("events", "how", "word"),
    [
        (WHOLE[:-1], {}, "before its end"),
        ([piece("a"), event(error={"message": "out of breath"}), WHOLE[-1]], {}, "out of breath"),
        (WHOLE, {"status": "503 Busy"}, "503"),
        (["data: {\n\n", WHOLE[-1]], {}, "JSON"),
    ],
)
def test_a_client_calls_a_failure_one(events: list[str], how: dict[str, Any], word: str) -> None:
    told = told_of(events, **how)
    assert told.failure is not None and word in told.failure


def test_a_client_that_vanishes_reads_no_more() -> None:
    told, ended = asyncio.run(_told([piece("a")] * 50, leave_after=2))
    assert told.pieces == 2 and told.failure is None and not ended


def test_a_rate_counts_the_part_of_an_answer_that_lies_within() -> None:
    crowd = Crowd(Server(1, "m", PROMPTS), 1)
    crowd.told = [
        Told(0, began=0.0, seconds=10.0, tokens=100),
        Told(0, began=8.0, seconds=4.0, tokens=40),
        Told(0, began=2.0, seconds=2.0, tokens=50, failure="yes"),
    ]
    assert crowd.rate(0.0, 10.0) == (100 + 20) / 10


def test_percentiles() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.95)] == [1, 2, 4]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], serve.Bench]:
    """The benchmark on the fake base, its contenders in this process, without the kills."""
    (tmp_path / "jobs").mkdir()
    kinds = {"prepare": _serve_ours.prepare, "batch": _serve_ours.batch}

    def run(python: Path, script: Path, job: dict[str, Any], *_: Any) -> dict[str, Any]:
        return kinds[job["what"]](job)

    rows = SimpleNamespace(shuffled=projects.rows(400))
    monkeypatch.setattr(serve, "open_rows", lambda say: (rows, None))
    monkeypatch.setattr(serve, "BASE", "fake")
    monkeypatch.setattr(serve, "QUICK_SECONDS", 1.0)
    monkeypatch.setattr(serve, "workspace", lambda: tmp_path)
    monkeypatch.setattr(_common, "run", run)
    monkeypatch.setattr(_jobs, "faults", lambda kills, say: _jobs.Found(torn=["a file"]))
    options = serve.parsed(["--quick", "--clients", "4"])
    return lambda: serve.Bench(options, Progress(serve.planned(options), print_=lambda line: None))


def test_the_whole_of_it_on_the_fake_base(
    bench: Callable[[], serve.Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench()
    made.measure()
    assert set(made.found) == {"short", "shared", "vanished", "slow readers", "switch", "kills"}
    for name in serve.ARMS:
        found = made.found[name]
        assert found["failures"] == 0 and found["requests"] >= 4
        assert found["same_text"] == 1.0, "the server says what the batch says"
        assert found["memory_mb"]["at the end"] > 0
    # Words in no time: nobody can serve these at that rate. And a torn file is told.
    assert [text.split(":")[0] for text in made.broken] == ["short", "shared", "kills"]
    shown = capsys.readouterr().out
    assert "8 others asked" in shown and "1 torn files" in shown
