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
from tests.fakes.endpoint import DROP, HANG, PROBE, Reply, nearest_neighbour, said, serving
from tuneworthy.config import EndpointSettings, Prices, load_project
from tuneworthy.engine import open_engine
from tuneworthy.engine.endpoint import GIVE_UP_AFTER, RETRIES, TEMPLATE_TOKENS, EndpointEngine
from tuneworthy.errors import EndpointError, ModelError, ProjectError
from tuneworthy.types import Answer, Decoding, Failure, Grammar, Message, Prompt

CONCURRENCY = EndpointSettings().concurrency
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
        start = time.monotonic()
        answers = EndpointEngine("m", endpoint.url).generate(prompts(4), DECODING)
    assert time.monotonic() - start < 0.5, "it waits as long as it is told to, and no longer"
    assert reasons(answers) == []
    assert set(tries.values()) == {RETRIES + 1}


def test_a_body_dropped_half_way_is_asked_again_and_then_a_failure() -> None:
    tries: dict[str, int] = {}

    def drops(number: int, body: dict[str, Any]) -> Reply:
        tries[question(body)] = tries.get(question(body), 0) + 1
        if question(body) == "question 1":
            return DROP
        return (200, said("a")) if tries[question(body)] == 3 else DROP

    with serving(drops) as endpoint:
        answers = EndpointEngine("m", endpoint.url).generate(prompts(4), DECODING)
    assert [isinstance(answer, Failure) for answer in answers] == [False, True, False, False]
    assert reasons(answers)[0].startswith("cannot be reached: ")
    assert tries == {f"question {n}": RETRIES + 1 if n == 1 else 3 for n in range(4)}


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


PER_SAID_TOKEN = Prices(output_per_million_usd=1_000_000)
"""A dollar a token."""


def billed(given: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": given, "completion_tokens": tokens, "total_tokens": given + tokens}


def limited(url: str, max_usd: float, say: Any = print, **settings: Any) -> EndpointEngine:
    endpoint = EndpointSettings(max_usd=max_usd, **settings)
    return EndpointEngine("m", url, endpoint, PER_SAID_TOKEN, say)


def test_no_row_is_asked_that_could_go_beyond_the_ceiling() -> None:
    """Two dollars at worst, one in fact: with nine spent of ten the next is not asked."""

    def some_refused(number: int, body: dict[str, Any]) -> Reply:
        if number % 3 == 0:
            return 400, {"error": {"message": "no"}}  # on nobody's bill
        return 200, said("a", usage=billed(5, 1))

    notes: list[str] = []
    with serving(some_refused) as endpoint:
        engine = limited(endpoint.url, 10, notes.append, concurrency=1)
        answers = engine.generate(prompts(30), Decoding(max_tokens=2))
        assert len(endpoint.asked) == 13
        later = engine.generate(prompts(2), Decoding(max_tokens=1))
        assert len(endpoint.asked) == 13, "shut is shut, even for a row that would fit"
    assert sum(isinstance(answer, Answer) for answer in answers) == 9
    beyond = "not asked: endpoint.max_usd (10) could be exceeded"
    assert reasons(answers[13:]) == [beyond] * 17
    assert reasons(later) == [beyond] * 2
    [note] = notes
    assert "endpoint.max_usd (10)" in note


@pytest.mark.parametrize("concurrency", [2, 8])
def test_what_is_under_way_counts_in_full(concurrency: int) -> None:
    most = min(concurrency, 4)
    all_there = threading.Barrier(most)

    def waits(number: int, body: dict[str, Any]) -> Reply:
        all_there.wait(timeout=30)  # for as many as may be under way, and no more
        return 200, said("a", usage=billed(5, 2))

    with serving(waits) as endpoint:
        engine = limited(endpoint.url, 9, concurrency=concurrency)
        answers = engine.generate(prompts(40), Decoding(max_tokens=2))
    assert endpoint.most_at_once == most
    assert len(endpoint.asked) == sum(isinstance(answer, Answer) for answer in answers) == 4


def test_a_row_that_was_dropped_may_be_on_the_bill() -> None:
    def drops_two(number: int, body: dict[str, Any]) -> Reply:
        dropped = question(body) in ("question 0", "question 1")
        return DROP if dropped else (200, said("a", usage=billed(5, 1)))

    with serving(drops_two) as endpoint:
        engine = limited(endpoint.url, 6, concurrency=1)
        answers = engine.generate(prompts(8), Decoding(max_tokens=2))
    assert [isinstance(answer, Answer) for answer in answers] == [False] * 2 + [True] + [False] * 5


def test_the_worst_case_of_a_prompt_is_a_token_a_byte() -> None:
    prompt = (Message("user", "é" * 10),)
    prices = Prices(input_per_million_usd=1_000_000)
    with serving(lambda n, body: (200, said("a"))) as endpoint:
        for max_usd, asked in ((19.9 + TEMPLATE_TOKENS, 0), (20 + TEMPLATE_TOKENS, 1)):
            settings = EndpointSettings(max_usd=max_usd)
            EndpointEngine("m", endpoint.url, settings, prices).generate([prompt], DECODING)
            assert len(endpoint.asked) == asked


def test_a_ceiling_below_one_question_is_an_error() -> None:
    with serving() as endpoint, pytest.raises(EndpointError, match="max_usd") as caught:
        limited(endpoint.url, 0.5).probe()
    assert caught.value.hint == "set endpoint.max_usd higher"


def test_a_ceiling_needs_prices(project_folder: Path) -> None:
    projects.write(project_folder, projects.rows(), endpoint={"max_usd": 1})
    with pytest.raises(ProjectError, match=r"endpoint\.max_usd needs prices"):
        load_project(project_folder)
    projects.write(project_folder, projects.rows(), endpoint={"max_usd": "none"})
    assert load_project(project_folder).endpoint == EndpointSettings()


def test_scores_are_refused() -> None:
    with pytest.raises(ModelError, match="how likely"):
        EndpointEngine("m", "http://127.0.0.1:9/v1").score(prompts(1), [("a",)])


def test_decide_within_a_ceiling(project_folder: Path) -> None:
    """The run ends as any other, and says for which rows nothing was spent."""
    spent: list[int] = []

    def answers(number: int, body: dict[str, Any]) -> Reply:
        status, reply = nearest_neighbour(number, body)
        spent.append(reply["usage"]["completion_tokens"])
        return status, reply

    with serving(answers) as endpoint:
        projects.write(
            project_folder,
            projects.rows(),
            base=f"openai:m@{endpoint.url}",
            arms=["zero-shot"],
            prices={"output_per_million_usd": 1_000_000},
            endpoint={"max_usd": 150, "concurrency": 2},
        )
        notes: list[str] = []
        decision = tw.decide(
            project_folder, listener=lambda e: notes.append(e["text"]) if "text" in e else None
        )
    failed = [p.failure for p in decision.predictions("zero-shot") if p.failure]
    assert 0 < len(failed) < len(decision.predictions("zero-shot"))
    assert set(failed) == {"not asked: endpoint.max_usd (150) could be exceeded"}
    assert sum(spent) <= 150
    assert sum("endpoint.max_usd" in note for note in notes) == 1


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
