"""A model with weights behind the server: what is measured is served, and one batch serves all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import tuneworthy as tw
from tests.fakes import projects, tiny
from tests.server import live as lives
from tests.server.live import Live
from tuneworthy import store
from tuneworthy.engine import hardware
from tuneworthy.engine.desk import Batching
from tuneworthy.engine.hardware import NumberFormat
from tuneworthy.engine.local import LocalEngine
from tuneworthy.server import promotion
from tuneworthy.server.house import House

ARMS = ["zero-shot", "few-shot", "lora"]
ASK: Any = [{"role": "user", "content": "turn the kitchen light on"}]
LONG = 300


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A tiny random model, measured with and without an adapter."""
    with pytest.MonkeyPatch.context() as patch:
        exact = NumberFormat("cpu", torch.float32, "exact")
        patch.setattr(hardware, "number_format", lambda: exact)
        folder = tmp_path_factory.mktemp("weights")
        tiny.save(folder / "base")
        words = "kitchen light on off red lamp hall fan".split()
        rows = [
            {"prompt": f"turn {a} {b} {c}", "completion": f"{c} {a}"}
            for a, b, c in list(product(words, repeat=3))[::4]
        ]
        project = projects.write(
            folder / "tiny",
            rows,
            task="tiny",
            base="../base",
            arms=ARMS,
            data__test=20,
            data__dev=20,
            data__train=40,
            few_shot={"k": 6, "select": "fixed"},
            lora={"epochs": 1, "learning_rate": 0.05, "rank": 4},
            exhaustive=True,
        )
        tw.decide(project)
        with lives.serving(House([project], folder / "state")) as served:
            yield served


@pytest.fixture
def desk(live: Live) -> Batching:
    live.client().chat.completions.create(model="tiny/zero-shot", messages=ASK, max_tokens=1)
    [(_, found)] = live.house.answering._engines.values()
    assert isinstance(found, Batching)
    return found


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_arm_says_what_was_measured_whoever_asks_beside(live: Live) -> None:
    run = promotion.finished_run(live.house.projects["tiny"].folder)
    rows = {row["id"]: row["messages"] for row in store.read_jsonl(run.rows)}
    asked = [(arm, said) for arm in ARMS for said in store.read_jsonl(run.predictions(arm))]
    assert len(asked) == 60
    client = live.client()

    def ask(arm: str, said: dict[str, Any]) -> Any:
        return client.chat.completions.create(model=f"tiny/{arm}", messages=rows[said["id"]])

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda pair: ask(*pair), asked[::-1]))[::-1]
    for (arm, said), answer in zip(asked, answers):
        assert answer.choices[0].message.content == said["text"], arm
        assert answer.usage.prompt_tokens == said["prompt_tokens"]
    # Examples that all prompts of an arm begin with were read once for many.
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
    assert sum(cached) > 0


def test_merged_adapters_say_what_was_measured_and_take_turns_with_the_base(
    live: Live, tmp_path: Path
) -> None:
    project = live.house.projects["tiny"].folder
    run = promotion.finished_run(project)
    rows = {row["id"]: row["messages"] for row in store.read_jsonl(run.rows)}
    with lives.serving(House([project], tmp_path / "state", merge=True)) as served:
        create = served.client().chat.completions.create
        for arm in ("lora", "zero-shot", "lora"):
            for said in store.read_jsonl(run.predictions(arm))[:6]:
                answer = create(model=f"tiny/{arm}", messages=rows[said["id"]])
                assert answer.choices[0].message.content == said["text"], arm
            [(engine, _)] = served.house.answering._engines.values()
            assert isinstance(engine, LocalEngine) and not engine._adapters
            assert engine._loaded and (engine._loaded.key == "base") == (arm == "zero-shot")


def test_a_stream_says_what_is_said_at_once(live: Live) -> None:
    create, longest = live.client().chat.completions.create, 0
    for arm, seed in product(ARMS, (None, 5)):
        wishes: Any = {"max_tokens": 40, "stop": ["ab", "qu"]}
        if seed is not None:
            wishes |= {"seed": seed, "temperature": 1.0, "top_p": 0.9}
        whole = create(model=f"tiny/{arm}", messages=ASK, **wishes).choices[0].message.content
        pieces = list(create(model=f"tiny/{arm}", messages=ASK, stream=True, **wishes))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
        longest = max(longest, len(pieces))
    assert longest > 5, "it comes in pieces"


def test_choices_differ_and_seeds_repeat(live: Live) -> None:
    create = live.client().chat.completions.create

    def said(seed: int | None) -> list[str | None]:
        made = create(
            model="tiny/zero-shot", messages=ASK, n=3, temperature=1.0, seed=seed, max_tokens=12
        )
        return [choice.message.content for choice in made.choices]

    assert said(7) == said(7) != said(8)
    assert len(set(said(7))) == 3
    assert said(None) != said(None)


def test_log_probabilities(live: Live) -> None:
    made = live.client().chat.completions.create(
        model="tiny/zero-shot", messages=ASK, logprobs=True, top_logprobs=4, max_tokens=8
    )
    assert made.choices[0].logprobs and made.usage
    content = made.choices[0].logprobs.content or []
    assert 0 < len(content) <= made.usage.completion_tokens
    for token in content:
        chances = [other.logprob for other in token.top_logprobs]
        assert len(chances) == 4 and chances == sorted(chances, reverse=True)
        assert token.logprob == pytest.approx(chances[0]) and token.logprob < 0
    old = live.client().completions.create(
        model="tiny/zero-shot", prompt=ASK[0]["content"], logprobs=2, max_tokens=8
    )
    chances_ = old.choices[0].logprobs
    assert chances_ and chances_.token_logprobs == pytest.approx([t.logprob for t in content])


def test_a_schema_holds_a_random_model(live: Live) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = live.client().chat.completions.create(
        model="tiny/zero-shot", messages=ASK, response_format=wanted, max_tokens=200
    )
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(made.choices[0].message.content or "")["on"], bool)
    else:
        assert (made.choices[0].message.content or "").startswith("{")


def _begin(live: Live, stream: bool) -> socket.socket:
    """A caller that asks for a long answer and does not read it."""
    asked = {"model": "tiny/zero-shot", "messages": ASK, "max_tokens": LONG, "stream": stream}
    body = json.dumps(asked | {"temperature": 1.5, "seed": 3})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {live.url[7:]}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    host, port = live.url[7:].split(":")
    caller = socket.create_connection((host, int(port)))
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.sendall((head + body).encode())
    return caller


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_leaves_frees_the_slot(
    live: Live, desk: Batching, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    from tuneworthy.engine.generation import Scheduler

    real = Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: (time.sleep(0.02), real(self))[1])
    callers = [_begin(live, stream) for _ in range(4)]
    until(lambda: len(desk._running) == 4)
    for caller in callers:
        caller.close()
    began = time.monotonic()
    until(lambda: not desk._running)
    assert time.monotonic() - began < 0.02 * LONG, "they were not answered to the end"


def test_a_slow_reader_holds_nobody_up(live: Live, desk: Batching) -> None:
    callers = [_begin(live, True) for _ in range(3)]
    try:
        create = live.client().chat.completions.create
        for _ in range(3):
            assert create(model="tiny/zero-shot", messages=ASK, max_tokens=8).choices
        until(lambda: not desk._running)  # answered to the end, though nobody has read a word
        assert httpx.get(f"{live.url}/health").is_success
    finally:
        for caller in callers:
            caller.close()
