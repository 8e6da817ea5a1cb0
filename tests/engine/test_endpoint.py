"""The OpenAI chat format against a server on the loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tuneworthy as tw
from tests.fakes import projects
from tests.fakes.endpoint import HANG, PROBE, Reply, nearest_neighbour, said, serving
from tuneworthy.engine import open_engine
from tuneworthy.engine.endpoint import CONCURRENCY, GIVE_UP_AFTER, RETRIES, EndpointEngine
from tuneworthy.errors import EndpointError, ModelError
from tuneworthy.types import Answer, Decoding, Failure, Grammar, Message, Prompt

DECODING = Decoding(max_tokens=32, stop=("END",), seed=7)


def prompts(count: int) -> list[Prompt]:
    return [(Message("user", f"question {n}"),) for n in range(count)]


def question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def reasons(answers: Sequence[Answer | Failure]) -> list[str]:
    return [answer.reason for answer in answers if isinstance(answer, Failure)]


def test_answers_stand_in_the_order_of_their_prompts() -> None:
    def slow_for_some(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.05 if question(body).endswith(("0", "5")) else 0.0)
        usage = {"prompt_tokens": number, "completion_tokens": 2, "total_tokens": 0}
        return 200, said(f"to {question(body)}", usage=usage)

    seen: list[tuple[int, Any]] = []
    with serving(slow_for_some) as endpoint:
        answers = EndpointEngine("m", endpoint.url).generate(
            prompts(20), DECODING, on_answer=lambda i, a: seen.append((i, a))
        )
    assert [a.text for a in answers if isinstance(a, Answer)] == [
        f"to question {n}" for n in range(20)
    ]
    assert sorted(i for i, _ in seen) == list(range(20))
    assert [i for i, _ in seen] != list(range(20)), "each is told as it stands"
    assert all(answers[i] is answer for i, answer in seen)


def test_what_is_asked_and_what_is_counted() -> None:
    usage = {"prompt_tokens": 321, "completion_tokens": 32, "total_tokens": 353}
    prompt = (
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a"),
        Message("user", "q"),
    )
    with serving(lambda n, body: (200, said("cut", reason="length", usage=usage))) as endpoint:
        [answer] = EndpointEngine("some-model", endpoint.url).generate([prompt], DECODING)
    assert isinstance(answer, Answer)
    assert (answer.prompt_tokens, answer.output_tokens, answer.finish_reason) == (321, 32, "length")
    assert 0 < answer.seconds < 30
    [body] = endpoint.asked
    assert body == {
        "model": "some-model",
        "messages": [{"role": m.role, "content": m.content} for m in prompt],
        "max_tokens": 32,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": ["END"],
        "seed": 7,
    }


def test_so_many_at_a_time_and_no_more() -> None:
    barrier = threading.Barrier(CONCURRENCY)

    def together(number: int, body: dict[str, Any]) -> Reply:
        barrier.wait(20)  # breaks unless CONCURRENCY requests are there at once
        return 200, said("a")

    with serving(together) as endpoint:
        answers = EndpointEngine("m", endpoint.url).generate(prompts(3 * CONCURRENCY), DECODING)
    assert reasons(answers) == []
    assert endpoint.most_at_once == CONCURRENCY


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_that_passes_is_asked_again(status: int) -> None:
    tries: dict[str, int] = {}

    def recovers(number: int, body: dict[str, Any]) -> Reply:
        tries[question(body)] = tries.get(question(body), 0) + 1
        good = tries[question(body)] > RETRIES
        return (200, said("a")) if good else (status, {"error": {"message": "busy"}})

    with serving(recovers) as endpoint:
        answers = EndpointEngine("m", endpoint.url).generate(prompts(4), DECODING)
    assert reasons(answers) == []
    assert set(tries.values()) == {RETRIES + 1}


def test_a_row_that_is_refused_is_a_failure_and_no_more() -> None:
    def picky(number: int, body: dict[str, Any]) -> Reply:
        n = int(question(body).split()[1])
        if n % 7 == 3:
            return 400, {"error": {"message": "too long for me"}}
        if n % 7 == 5:
            return 200, said(None, reason="content_filter")
        return 200, said("a")

    with serving(picky) as endpoint:
        answers = EndpointEngine("m", endpoint.url).generate(prompts(28), DECODING)
    failed = {i for i, answer in enumerate(answers) if isinstance(answer, Failure)}
    assert failed == {n for n in range(28) if n % 7 in (3, 5)}
    assert set(reasons(answers)) == {
        "answered with status 400: too long for me",
        "no text in the answer (finish reason 'content_filter')",
    }


def refusing(number: int, body: dict[str, Any]) -> Reply:
    if question(body).startswith(("question", "bad")):
        return 400, {"error": {"message": "no"}}
    return 200, said("a")


def test_every_row_refused_is_an_error() -> None:
    with serving(refusing) as endpoint:
        engine = EndpointEngine("m", endpoint.url)
        engine.probe()
        with pytest.raises(EndpointError, match="status 400: no") as caught:
            engine.generate(prompts(40), DECODING)
    assert (caught.value.where, caught.value.hint) == (endpoint.url, f"curl {endpoint.url}/models")
    assert len(endpoint.asked) <= 1 + GIVE_UP_AFTER + 2 * CONCURRENCY, "it gives up early"


def test_many_bad_rows_in_a_row_are_failures_while_the_endpoint_is_there() -> None:
    with serving(refusing) as endpoint:
        engine = EndpointEngine("m", endpoint.url)
        good = (Message("user", "a good one"),)
        bad = [(Message("user", f"bad {n}"),) for n in range(30)]
        answers = engine.generate([good, *bad], DECODING)
        assert len(reasons(answers)) == 30
        # A second try of the few that failed is not taken for an endpoint that is broken.
        assert len(reasons(engine.generate(bad[:2], DECODING))) == 2
        assert len(reasons(EndpointEngine("m", endpoint.url).generate(bad[:2], DECODING))) == 2
    assert PROBE in endpoint.questions


@pytest.mark.parametrize("answered_before", [True, False])
def test_an_endpoint_that_is_gone_is_an_error(answered_before: bool) -> None:
    there = True

    def behaviour(number: int, body: dict[str, Any]) -> Reply:
        return (200, said("a")) if there else (502, {"error": {"message": "bad gateway"}})

    with serving(behaviour) as endpoint:
        engine = EndpointEngine("m", endpoint.url)
        if answered_before:
            engine.generate(prompts(2), DECODING)
        there = False
        with pytest.raises(EndpointError, match="status 502: bad gateway"):
            engine.generate(prompts(40), DECODING)
        with pytest.raises(EndpointError, match="status 502: bad gateway"):
            engine.generate(prompts(2), DECODING)


def test_an_endpoint_that_hangs_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C does not wait for answers that never come."""

    def hangs_later(number: int, body: dict[str, Any]) -> Reply:
        return (200, said("a")) if number == 1 else HANG

    def interrupt(position: int, answer: Any) -> None:
        raise KeyboardInterrupt

    with serving(hangs_later) as endpoint:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            EndpointEngine("m", endpoint.url).generate(prompts(40), DECODING, on_answer=interrupt)
        assert time.monotonic() - start < 5
        time.sleep(0.3)
        assert len(endpoint.asked) <= CONCURRENCY + 1, "nothing new is asked"


def test_half_a_character_in_an_answer_is_replaced() -> None:
    with serving(lambda n, body: (200, said("a \ud83d b"))) as endpoint:
        [answer] = EndpointEngine("m", endpoint.url).generate(prompts(1), DECODING)
    assert isinstance(answer, Answer) and answer.text == "a \ufffd b"


@pytest.mark.parametrize("value", ["soon", "0", "-3", "inf", "nan"])
def test_a_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TUNEWORTHY_TIMEOUT_SECONDS", value)
    with pytest.raises(EndpointError) as caught:
        EndpointEngine("m", "http://127.0.0.1:9/v1")
    assert str(caught.value) == f"TUNEWORTHY_TIMEOUT_SECONDS: '{value}' is not a number of seconds"
    assert caught.value.hint == "export TUNEWORTHY_TIMEOUT_SECONDS=120"


@pytest.mark.parametrize(
    ("base", "error"),
    [
        ("openai:m", "base: 'openai:m' is not openai:model@url"),
        ("openai:@http://a/v1", "base: 'openai:@http://a/v1' is not openai:model@url"),
        ("openai:m@ftp://a/v1", "base: 'openai:m@ftp://a/v1' is not openai:model@url"),
        ("openai:m@http://me:secret@a/v1", "base: the endpoint's address holds a password"),
    ],
)
def test_addresses(base: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_engine(base, tmp_path, print)
    assert str(caught.value) == error
    assert "secret" not in f"{caught.value}{caught.value.hint}"


def test_a_grammar_is_asked_for_in_the_formats_own_field() -> None:
    answers = iter(['{"answer": "no way"}', "not JSON", '{"a": 1}'])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    held = [
        Grammar("labels", '["yes", "no way"]'),
        Grammar("labels", '["yes", "no way"]'),
        Grammar("json_schema", json.dumps(schema), (",", ":")),
    ]
    with serving(lambda n, body: (200, said(next(answers)))) as endpoint:
        engine = EndpointEngine("m", endpoint.url)
        asked = [Decoding(max_tokens=9, grammar=grammar) for grammar in held]
        given = [engine.generate(prompts(1), decoding)[0] for decoding in asked]
    assert [a.text for a in given if isinstance(a, Answer)] == ["no way", "not JSON", '{"a": 1}']
    labels, _, own = [body["response_format"]["json_schema"]["schema"] for body in endpoint.asked]
    assert labels["properties"]["answer"]["enum"] == ["yes", "no way"]
    assert own == schema


def test_decide_by_an_endpoint(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-test-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    rude = {f"{row['prompt']}" for row in projects.rows()[::9]}

    def echoes_the_key(number: int, body: dict[str, Any]) -> Reply:
        if question(body) in rude:
            return 400, {"error": {"message": f"the key {key} has no right to ask this"}}
        return nearest_neighbour(number, body)

    with serving(echoes_the_key) as endpoint:
        projects.write(
            project_folder,
            projects.rows(),
            base=f"openai:m@{endpoint.url}",
            few_shot__select="fixed",
            prices={
                "machine_hour_usd": 9.0,
                "input_per_million_usd": 2.0,
                "output_per_million_usd": 8.0,
            },
        )
        decision = tw.decide(project_folder)
    record = decision.record
    assert endpoint.keys == {f"Bearer {key}"}
    assert {arm["arm"] for arm in record["arms"]} == {
        "zero-shot",
        "system-prompt",
        "constrained",
        "few-shot",
    }
    missing = {item["arm"]: item["reason"] for item in record["not_measured"]}
    assert missing["lora"] == missing["full"] == "an endpoint's weights cannot be trained from here"
    assert not record["fine_tune"]
    for arm in record["arms"]:
        predictions = decision.predictions(arm["arm"])
        answered = [p for p in predictions if p.failure is None]
        assert arm["failures"] == len(predictions) - len(answered) > 0
        usd = sum(2e-6 * p.prompt_tokens + 8e-6 * p.output_tokens for p in answered)
        # Dollars of tokens alone: the endpoint's machine is not ours to pay by the hour.
        assert arm["cost"]["usd_per_1k_requests"] == pytest.approx(1000 * usd / len(answered))
        assert arm["cost"]["usd_per_1k_requests"] > 0
    reason = "answered with status 400: the key $OPENAI_API_KEY has no right to ask this"
    assert reason in {p.failure for p in decision.predictions("few-shot")}
    files = [path for path in project_folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    assert json.loads((decision.folder / "config.json").read_text())["base"]["trainable"] is False
