"""A house on the fake base, measured once, and a real server on a loopback port in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import uvicorn

import tuneworthy as tw
from tests.fakes import projects
from tuneworthy.server import running
from tuneworthy.server.app import create_app
from tuneworthy.server.house import House

ARMS = {
    "commands": [
        *("zero-shot", "system-prompt", "few-shot", "rag"),
        *("lora", "full", "rag+lora", "few-shot+lora"),
    ],
    "deeds": ["constrained", "linear", "few-shot"],
}
"""All kinds of arms, measured to the end."""


def build(folder: Path) -> Path:
    """Two measured projects in a folder: JSON with documents, and labels."""
    rows = projects.rows(100)
    documents = folder / "commands" / "docs"
    documents.mkdir(parents=True)
    text = "\n\n".join(f"{row['prompt']} means {row['completion']}." for row in rows)
    (documents / "all.md").write_text(text, "utf-8")
    labels = [
        {"prompt": row["prompt"], "completion": row["kind"].partition("-")[0]} for row in rows
    ]
    common: dict[str, Any] = {"data__test": 20, "data__dev": 20, "exhaustive": True}
    projects.write(
        folder / "commands", rows, data__documents="docs", arms=ARMS["commands"], **common
    )
    projects.write(folder / "deeds", labels, task="deeds", arms=ARMS["deeds"], **common)
    for task in ARMS:
        tw.decide(folder / task)
    return folder


class Live:
    """A server that listens."""

    def __init__(self, house: House, url: str) -> None:
        self.house, self.url = house, url

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@contextmanager
def serving(house: House) -> Iterator[Live]:
    listening = running._listen("127.0.0.1", 0)
    config = uvicorn.Config(create_app(house, work=False), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    try:
        yield Live(house, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
