"""An endpoint on the loopback that speaks the OpenAI chat format, or does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tuneworthy.engine.fake import FakeEngine
from tuneworthy.types import Answer, Decoding, Grammar, Message

Reply = tuple[int, Any]
"""Status and body: a dict goes out as JSON, a text as it is, None hangs until the end."""
Behaviour = Callable[[int, dict[str, Any]], Reply]
"""Takes the request's number, from 1, and its body."""

HANG: Reply = (200, None)
DROP: Reply = (200, b"")
PROBE = "Say hello."


def said(text: Any, *, reason: str = "stop", usage: Any = None) -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason,
            }
        ],
        "usage": usage or {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }


def nearest_neighbour(number: int, body: dict[str, Any]) -> Reply:
    """Answers as the fake base does, held to the schema that is asked for."""
    prompt = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    asked = body.get("response_format", {}).get("json_schema")
    grammar = Grammar("json_schema", json.dumps(asked["schema"])) if asked else None
    decoding = Decoding(max_tokens=body["max_tokens"], grammar=grammar)
    answer = FakeEngine()._answer(prompt, decoding, [])
    assert isinstance(answer, Answer)
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
    }
    return 200, said(answer.text, reason=answer.finish_reason, usage=usage)


class Endpoint:
    """What was asked, and how many requests were there at the same time at most."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]


@contextmanager
def serving(behaviour: Behaviour = nearest_neighbour) -> Iterator[Endpoint]:
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with endpoint.lock:
                endpoint.asked.append(body)
                endpoint.keys.add(self.headers["authorization"])
                number = len(endpoint.asked)
                endpoint.at_once += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
            try:
                reply = behaviour(number, body)
            finally:  # before it is sent: whoever has it may ask again at once
                with endpoint.lock:
                    endpoint.at_once -= 1
            self._reply(*reply)

        def _reply(self, status: int, body: Any) -> None:
            if body is None:
                endpoint.ended.wait(30)
                return
            text = body if isinstance(body, str) else json.dumps(body) if body else ""
            kind = "application/json" if isinstance(body, dict) else "text/html"
            self.send_response(status)
            self.send_header("content-type", kind)
            # The client waits so long before it asks again.
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(text.encode()) if body else 1000))
            self.end_headers()
            self.wfile.write(text.encode())
            if not body:
                self.wfile.write(b'{"choices": [')
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
