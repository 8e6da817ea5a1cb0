"""The official client, unchanged, against a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.server.live import ARMS, Live
from tuneworthy.engine.fake import FakeEngine
from tuneworthy.types import Answer

ASK: Any = [{"role": "user", "content": "start the lamp in the hall"}]
SCHEMA = {
    "type": "object",
    "properties": {"room": {"type": "string"}},
    "required": ["room"],
    "additionalProperties": False,
}


@pytest.fixture
def client(live: Live) -> OpenAI:
    return live.client()


def test_every_task_and_arm_has_a_name(client: OpenAI) -> None:
    named = {model.id for model in client.models.list()}
    assert named >= {f"{task}/{arm}" for task, arms in ARMS.items() for arm in arms}
    assert {"commands", "deeds"} <= named
    assert client.models.retrieve("commands/few-shot").owned_by == "tuneworthy"


def test_the_task_answers_with_its_promoted_arm(client: OpenAI, live: Live) -> None:
    plain = client.chat.completions.create(model="deeds", messages=ASK)
    place = live.house.resolve("deeds")
    assert place is not None
    same = client.chat.completions.create(model=f"deeds/{place.arm}", messages=ASK)
    assert plain.choices[0].message.content == same.choices[0].message.content == "start"
    assert plain.system_fingerprint == same.system_fingerprint


@pytest.mark.parametrize("model", ["commands/lora", "commands/few-shot", "deeds/linear"])
def test_a_stream_says_what_is_said_at_once(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ASK)
    pieces = list(
        client.chat.completions.create(
            model=model, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    *spoken, last = pieces
    text = "".join(piece.choices[0].delta.content or "" for piece in spoken)
    assert text == whole.choices[0].message.content
    assert spoken[0].choices[0].delta.role == "assistant"
    assert spoken[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage == whole.usage
    assert len({piece.id for piece in pieces}) == 1
    unasked = client.chat.completions.create(model=model, messages=ASK, stream=True)
    assert all(piece.usage is None for piece in unasked)


def test_several_choices_stops_and_lengths(client: OpenAI) -> None:
    made = client.chat.completions.create(model="commands/zero-shot", messages=ASK, n=3)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert made.usage and made.usage.completion_tokens == 3 * 6
    cut = client.chat.completions.create(model="commands/zero-shot", messages=ASK, max_tokens=2)
    assert cut.choices[0].message.content == "start the"
    assert cut.choices[0].finish_reason == "length"
    ended = client.chat.completions.create(model="commands/zero-shot", messages=ASK, stop=[" lamp"])
    assert ended.choices[0].message.content == "start the"
    assert ended.choices[0].finish_reason == "stop"


def test_an_answer_can_be_held_to_a_schema(client: OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    held = client.chat.completions.create(
        model="commands/zero-shot", messages=ASK, response_format=wanted
    )
    assert set(json.loads(held.choices[0].message.content or "")) == {"room"}
    loose = client.chat.completions.create(
        model="commands/zero-shot", messages=ASK, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(loose.choices[0].message.content or ""), dict)


def test_texts_in_parts_and_older_completions(client: OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    model = "commands/few-shot"
    plain = client.chat.completions.create(model=model, messages=ASK)
    in_parts = client.chat.completions.create(model=model, messages=parts)
    assert in_parts.choices[0].message.content == plain.choices[0].message.content
    old = client.completions.create(model=model, prompt=[ASK[0]["content"], "mute the fan"])
    assert [choice.index for choice in old.choices] == [0, 1]
    assert old.choices[0].text == plain.choices[0].message.content
    streamed = client.completions.create(model=model, prompt=ASK[0]["content"], stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == old.choices[0].text


def test_half_a_character_harms_nobody(live: Live) -> None:
    body = '{"model": "commands/zero-shot", "messages": [{"role": "user", "content": "a \\ud800"}]}'
    answer = httpx.post(
        f"{live.url}/v1/chat/completions",
        content=body.encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages.0.content")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"extra_body": {"min_p": 0.1}}, "min_p"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [{"role": "assistant", "content": "hm"}]}, "messages"),
        ({"max_tokens": 9000}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "no such type"}},
                }
            },
            "response_format.json_schema",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_understood_is_refused(
    client: OpenAI, more: dict[str, Any], param: str, stream: bool
) -> None:
    asked = {"model": "commands/zero-shot", "messages": ASK, "stream": stream, **more}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.param or "").startswith(param)
    assert caught.value.type == "invalid_request_error"


def test_classifiers_say_what_they_cannot(client: OpenAI) -> None:
    for more, param in (
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="deeds/linear", messages=ASK, **more)  # type: ignore[call-overload]
        assert caught.value.param == param


@pytest.mark.parametrize("name", ["gpt-5", "commands/gone", "commands/../deeds", "ft:no"])
def test_an_unknown_model_is_told_which_are_known(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=ASK)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "commands/few-shot" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def test_errors_outside_of_the_routes_have_the_same_shape(live: Live) -> None:
    for method, path, status in (
        ("GET", "/v1/nowhere", 404),
        ("DELETE", "/v1/chat/completions", 405),
        ("POST", "/v1/chat/completions", 400),
    ):
        answer = httpx.request(method, live.url + path, content=b"{")
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_health_and_metrics(live: Live, client: OpenAI) -> None:
    assert httpx.get(f"{live.url}/health").json()["status"] == "ok"
    client.chat.completions.create(model="deeds", messages=ASK)
    told = httpx.get(f"{live.url}/metrics").text
    assert 'tuneworthy_tokens_total{kind="completion"}' in told
    assert 'status="200"' in told


def test_many_clients_at_once(live: Live) -> None:
    def ask(number: int) -> str | None:
        room = ("den", "attic", "porch")[number % 3]
        messages: Any = [{"role": "user", "content": f"open the fan in the {room} {number}"}]
        create = live.client().chat.completions.create
        if number % 2:
            pieces = create(model="commands/zero-shot", messages=messages, stream=True)
            return "".join(piece.choices[0].delta.content or "" for piece in pieces)
        answer = create(model="commands/zero-shot", messages=messages)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(16) as threads:
        said = list(threads.map(ask, range(48)))
    assert [text.split()[-1] for text in said if text] == [str(n) for n in range(48)]


def test_whoever_leaves_is_not_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    going, seen = threading.Event(), threading.Event()
    real = FakeEngine.generate

    def slow(self: FakeEngine, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if "wait" in prompts[0][-1].content:
            seen.set()
            going.wait(30)
        return real(self, prompts, *args, **kwargs)

    monkeypatch.setattr(FakeEngine, "generate", slow)
    body = json.dumps(
        {"model": "commands/zero-shot", "messages": [{"role": "user", "content": "wait"}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {live.url[7:]}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    host, port = live.url[7:].split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall((head + body).encode())
        assert seen.wait(30)
        # Others are answered meanwhile.
        assert live.client().chat.completions.create(model="deeds/few-shot", messages=ASK)
    end = time.monotonic() + 20
    while "tuneworthy_requests_running 1.0" not in httpx.get(f"{live.url}/metrics").text:
        assert time.monotonic() < end, "the request of the one who left is still running"
        time.sleep(0.1)
    going.set()


def test_a_failing_engine_is_a_server_error(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeEngine, *args: Any, **kwargs: Any) -> Answer:
        raise RuntimeError("secrets of the house")

    monkeypatch.setattr(FakeEngine, "generate", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="commands/zero-shot", messages=ASK)
    assert "secrets" not in str(caught.value) and caught.value.code == "answer_failed"
    with pytest.raises(openai.InternalServerError, match="RuntimeError"):
        client.chat.completions.create(model="commands/zero-shot", messages=ASK, stream=True)


def test_langchain_talks_to_it(live: Live) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        model="commands/lora", base_url=f"{live.url}/v1", api_key="none", temperature=0
    )
    wanted = live.client().chat.completions.create(model="commands/lora", messages=ASK)
    text = wanted.choices[0].message.content
    assert chat.invoke(ASK[0]["content"]).content == text
    assert "".join(str(piece.content) for piece in chat.stream(ASK[0]["content"])) == text
