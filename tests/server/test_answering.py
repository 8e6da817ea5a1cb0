"""What a request becomes on its way to the desk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import tuneworthy
from tests.fakes import projects
from tuneworthy.engine.desk import Order, Said
from tuneworthy.server import answering
from tuneworthy.server.answering import Answering, Wishes
from tuneworthy.store import RunFolder
from tuneworthy.types import Answer, Message


class Desk:
    """Keeps the orders, and answers all of them alike."""

    chances = True

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def submit(self, order: Order) -> Any:
        self.orders.append(order)
        order.on_done(Said(Answer("said", 1, 1, "stop", 0.0)))
        return lambda: None

    def close(self) -> None:
        """Nothing is open."""


def test_prompts_with_another_system_message_are_another_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.write(tmp_path / "p", projects.rows(120), arms=["few-shot"], data__test=20)
    run = tuneworthy.decide(tmp_path / "p").folder
    desk = Desk()
    monkeypatch.setattr(answering, "open_desk", lambda engine, merge: desk)
    made, user = Answering(), Message("user", "start the lamp")

    async def ask(*messages: Message) -> str:
        stream = await made.answer(RunFolder(run), "few-shot", messages, Wishes())
        assert isinstance(await stream.finished(), Said)
        return desk.orders[-1].family

    async def families() -> list[str]:
        strict = Message("system", "Be strict.")
        return [await ask(*messages) for messages in ([user], [user], [strict, user], [user])]

    first, again, other, last = asyncio.run(families())
    assert first == again == last != other
    made.close()
