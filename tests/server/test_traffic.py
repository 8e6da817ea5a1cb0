"""The traffic log: off, or redacted, kept for some days, and of use for the next decision."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import tuneworthy as tw
from tests.fakes import projects
from tests.server import live as lives
from tests.server.live import Live
from tuneworthy import store
from tuneworthy.server import traffic
from tuneworthy.server.house import House
from tuneworthy.server.traffic import Traffic
from tuneworthy.types import Message

ASK: Any = [{"role": "user", "content": "mute the oven in the den"}]
SECRET = "sk-" + "a1B2" * 12


def feedback(live: Live, **said: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/feedback", json=said)


def test_nothing_is_kept_unless_asked_for(live: Live, measured: Path) -> None:
    answer = live.client().chat.completions.create(model="commands/lora", messages=ASK)
    assert not (measured / "commands" / "traffic").exists()
    refused = feedback(live, id=answer.id, thumbs="up")
    assert refused.status_code == 409 and "--log-traffic" in refused.json()["error"]["message"]


def test_from_an_answer_to_a_row_of_the_next_decision(own: Path, tmp_path: Path) -> None:
    project = own / "commands"
    with lives.serving(House([own], tmp_path / "state", traffic=Traffic())) as live:
        create = live.client().chat.completions.create
        ids = []
        for thing in ("oven", "lamp", "fan", "pump"):
            messages: Any = [{"role": "user", "content": f"mute the {thing} in the den"}]
            if thing == "lamp":
                pieces = list(create(model="commands/lora", messages=messages, stream=True))
                ids.append(pieces[0].id)
            else:
                ids.append(create(model="commands/lora", messages=messages).id)
        assert feedback(live, id=ids[0], thumbs="up").is_success
        wanted = json.dumps({"deed": "mute", "thing": "lamp", "room": "den"})
        assert feedback(live, id=ids[1], thumbs="down", corrected="no").is_success
        assert feedback(live, id=ids[1], corrected=wanted).is_success
        assert feedback(live, id=ids[2], thumbs="down").is_success
        assert feedback(live, id="chatcmpl-none", thumbs="up").status_code == 404
        assert feedback(live, id=ids[3]).status_code == 400
    kept = traffic.rows(project)
    assert [row["messages"][0]["content"].split()[2] for row in kept] == ["oven", "lamp"]
    assert kept[1]["messages"][-1] == {"role": "assistant", "content": wanted}
    # The next decision reads them beside the rows there were.
    more = "".join(json.dumps(row) + "\n" for row in kept)
    (project / "more.jsonl").write_text(more, "utf-8")
    before = tw.check(project).rows["read"]
    settings = {"data__examples": "[em]*.jsonl", "data__test": 20, "data__dev": 20}
    changed = projects.write(project, projects.rows(100), **settings)
    assert tw.check(changed).rows["read"] == before + 2


def test_secrets_are_never_written(tmp_path: Path) -> None:
    asked = (
        Message("system", f"the key is {SECRET}"),
        Message("user", "write to ann@mailbox.org, card 4111 1111 1111 1111, call 12345"),
    )
    log = Traffic()
    log.record(tmp_path, "a", "m", "lora", asked, f"as you wish: {SECRET}")
    log.shadow(tmp_path, "a", "full", SECRET)
    assert log.feedback(tmp_path, "a", None, f"better: {SECRET}")
    [path] = (tmp_path / "traffic").iterdir()
    text = path.read_text("utf-8")
    assert SECRET not in text and "ann@" not in text and "4111" not in text
    assert "12345" in text, "an ordinary number stays"
    assert "[e-mail address]" in text and "[card number]" in text


def test_old_days_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "traffic"
    folder.mkdir()
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=back)).isoformat() for back in (1, 6, 7, 8, 400)]
    for day in days:
        (folder / f"{day}.jsonl").write_text("", "utf-8")
    (folder / "2001-notes.jsonl").write_text("", "utf-8")
    Traffic(days=7).record(tmp_path, "a", "m", "lora", (Message("user", "hm"),), "ha")
    left = {path.name for path in folder.iterdir()}
    assert left == {f"{d}.jsonl" for d in (today.isoformat(), *days[:3])} | {"2001-notes.jsonl"}


def test_a_torn_last_line_harms_nobody(tmp_path: Path) -> None:
    log = Traffic()
    log.record(tmp_path, "a", "m", "lora", (Message("user", "hm"),), "ha")
    [path] = (tmp_path / "traffic").iterdir()
    with path.open("a") as file:
        file.write('{"id": "b", "mess')
    assert log.feedback(tmp_path, "a", "up", None)
    assert [row["messages"][-1]["content"] for row in traffic.rows(tmp_path)] == ["ha"]


def test_feedback_of_the_official_clients_shape(own: Path, tmp_path: Path) -> None:
    with lives.serving(House([own], tmp_path / "state", traffic=Traffic())) as live:
        client = live.client()
        answer = client.chat.completions.create(model="deeds/linear", messages=ASK)
        said = client.post(
            "/feedback", body={"id": answer.id, "thumbs": "up"}, cast_to=httpx.Response
        )
        assert said.is_success
        with pytest.raises(openai.BadRequestError):
            client.post("/feedback", body={"id": answer.id, "thumbs": "?"}, cast_to=httpx.Response)
    assert len(traffic.rows(own / "deeds")) == 1
    assert store.read_jsonl(next((own / "deeds" / "traffic").iterdir()))[0]["arm"] == "linear"


def test_every_choice_is_kept_and_can_be_spoken_of(own: Path, tmp_path: Path) -> None:
    project = own / "commands"
    with lives.serving(House([own], tmp_path / "state", traffic=Traffic())) as live:
        client = live.client()
        many = client.completions.create(
            model="commands/lora", prompt=["mute the oven in the den", "mute the fan in the den"]
        )
        twice = client.chat.completions.create(model="commands/lora", messages=ASK, n=2)
        kept = {line["id"]: line for line in traffic.lines(project)}
        wanted = [many.id, f"{many.id}-1", twice.id, f"{twice.id}-1"]
        assert [*kept] == wanted
        assert [kept[id_]["messages"][-1]["content"].split()[2] for id_ in wanted[:2]] == [
            "oven",
            "fan",
        ]
        assert feedback(live, id=wanted[1], thumbs="up").is_success
    [row] = traffic.rows(project)
    assert "fan" in row["messages"][0]["content"]
    assert row["messages"][-1]["content"] == many.choices[1].text
