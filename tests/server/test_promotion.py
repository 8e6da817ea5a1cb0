"""Who answers for a task: promoted, rolled back, a canary beside, a shadow behind."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import live as lives
from tuneworthy import store
from tuneworthy.errors import ProjectError, StorageError
from tuneworthy.server import promotion
from tuneworthy.server.house import House

ASK: Any = [{"role": "user", "content": "start the lamp in the hall"}]


@pytest.fixture
def house(own: Path, tmp_path: Path) -> House:
    return House([own], tmp_path / "state")


@pytest.fixture
def project(own: Path) -> Path:
    return own / "commands"


def arm_of(house: House, seed: int = 0) -> str:
    place = house.resolve("commands", random.Random(seed))
    assert place is not None
    return place.arm


def test_what_was_decided_answers_until_something_is_promoted(house: House, project: Path) -> None:
    run = promotion.finished_run(project)
    decided = store.read_json(run.decision)["arm"]
    assert arm_of(house) == decided
    other = "lora" if decided != "lora" else "full"
    promotion.promote(project, other)
    assert arm_of(house) == other
    assert House([project], house.state).resolve("commands").arm == other  # type: ignore[union-attr]
    promotion.rollback(project)
    assert arm_of(house) == decided


def test_rolling_back_goes_as_far_as_it_was_promoted(project: Path) -> None:
    for arm in ("zero-shot", "lora", "full", "full"):
        promotion.promote(project, arm)
    back = [promotion.rollback(project).promoted for _ in range(2)]
    assert [choice.arm for choice in back if choice] == ["lora", "zero-shot"]
    promotion.rollback(project)  # to what was decided
    with pytest.raises(ProjectError, match="nothing to roll back to"):
        promotion.rollback(project)
    told = [(line["what"], line.get("arm"), line["by"]) for line in promotion.history(project)]
    assert told[:2] == [
        ("promoted", "zero-shot", "command line"),
        ("promoted", "lora", "command line"),
    ]
    assert [what for what, *_ in told[4:]] == ["rolled back"] * 3


def test_a_promoted_run_stays_when_a_newer_one_is_there(house: House, project: Path) -> None:
    run = promotion.promote(project, "lora").promoted
    assert run is not None
    newer = project / "runs" / "commands-29991231-000000-00000000"
    shutil.copytree(project / "runs" / run.run, newer)
    assert promotion.finished_run(project).path == newer
    assert house.resolve("commands").run.path.name == run.run  # type: ignore[union-attr]


def test_an_arm_of_an_older_run_can_be_promoted(house: House, project: Path) -> None:
    older = promotion.finished_run(project).path
    newer = older.with_name("commands-29991231-000000-00000000")
    shutil.copytree(older, newer)
    promotion.promote(project, "lora", run=older.name)
    assert house.resolve("commands").run.path == older  # type: ignore[union-attr]
    promotion.set_canary(project, "lora", 0.1)
    canary = promotion.read(project).canary
    assert canary and canary.run == newer.name, "the same arm of another run is another one"
    with pytest.raises(StorageError, match="no finished run gone"):
        promotion.promote(project, "lora", run="gone")


def test_what_answers_already_is_no_second_arm(project: Path) -> None:
    promotion.promote(project, "lora")
    refused = pytest.raises(ProjectError, match=r"'lora' of .* answers every request already")
    with refused:
        promotion.set_canary(project, "lora", 0.1)
    with refused:
        promotion.set_shadow(project, "lora")
    promotion.set_shadow(project, "full")
    promotion.promote(project, "full")
    assert promotion.read(project).shadow is None, "it answers in the open now"


def test_a_canary_gets_its_share(house: House, project: Path) -> None:
    promotion.promote(project, "lora")
    promotion.set_canary(project, "few-shot", 0.25)
    draw = random.Random(3)
    found = Counter(house.resolve("commands", draw).arm for _ in range(400))  # type: ignore[union-attr]
    assert set(found) == {"lora", "few-shot"} and 70 < found["few-shot"] < 130
    promotion.set_canary(project, None)
    assert {arm_of(house, seed) for seed in range(20)} == {"lora"}
    promotion.set_canary(project, "few-shot", 0.25)
    promotion.promote(project, "few-shot")
    assert promotion.read(project).canary is None, "a promotion ends it"


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0])
def test_a_share_that_is_none_is_refused(project: Path, share: float) -> None:
    with pytest.raises(ProjectError, match="a canary's share"):
        promotion.set_canary(project, "lora", share)


def test_an_arm_that_was_not_measured_is_refused(project: Path) -> None:
    before = promotion.read(project)
    for change in (promotion.promote, promotion.set_shadow):
        with pytest.raises(ProjectError, match="'linear' was not measured") as caught:
            change(project, "linear")
        assert "few-shot" in (caught.value.hint or "")
    assert promotion.read(project) == before and not promotion.history(project)


def test_a_file_of_somebody_else_is_not_believed(project: Path) -> None:
    (project / promotion.FILE).write_text('{"promoted": 3}', "utf-8")
    with pytest.raises(StorageError, match="does not say what is promoted"):
        promotion.read(project)


def test_many_at_once_leave_a_whole_file_and_every_change(project: Path) -> None:
    arms = ("zero-shot", "few-shot", "lora", "full")

    def work(arm: str) -> None:
        for _ in range(5):
            promotion.promote(project, arm)
            assert promotion.read(project).promoted is not None

    threads = [threading.Thread(target=work, args=(arm,)) for arm in arms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [line["arm"] for line in promotion.history(project)]
    assert Counter(told) == dict.fromkeys(arms, 5)
    after = promotion.read(project)
    assert after.promoted and after.promoted.arm == told[-1]


def test_a_running_server_follows_at_once(house: House, project: Path) -> None:
    with lives.serving(house) as live:
        create = live.client().chat.completions.create

        def arm() -> str:
            mark = create(model="commands", messages=ASK).system_fingerprint or ""
            return mark.rpartition("/")[2]

        promotion.promote(project, "lora")
        assert arm() == "lora"
        admin = f"{live.url}/api/tasks/commands"
        answer = httpx.post(f"{admin}/promote", json={"arm": "full"})
        assert answer.status_code == 200 and answer.json()["promoted"]["arm"] == "full"
        assert arm() == "full"
        assert httpx.post(f"{admin}/rollback").json()["promoted"]["arm"] == "lora"
        assert arm() == "lora"
        assert promotion.history(project)[-1]["by"] == "server"
        assert httpx.post(f"{admin}/canary", json={"arm": "full", "share": 0.999}).is_success
        assert Counter(arm() for _ in range(6))["full"] >= 4
        assert httpx.post(f"{admin}/canary", json={"arm": None}).json()["canary"] is None
        for body, path in (({"arm": "gone"}, "promote"), ({"arm": "lora", "share": 0}, "canary")):
            assert httpx.post(f"{admin}/{path}", json=body).status_code == 400
        gone = httpx.post(f"{live.url}/api/tasks/none/promote", json={"arm": "lora"})
        assert gone.status_code == 404
        told = httpx.get(f"{live.url}/api/tasks").json()["tasks"]
        [commands] = [task for task in told if task["task"] == "commands"]
        assert commands["answering"]["arm"] == "lora"


def test_a_shadow_is_recorded_and_seen_by_nobody(house: House, project: Path) -> None:
    promotion.promote(project, "zero-shot")
    promotion.set_shadow(project, "lora")
    with lives.serving(house) as live:
        create = live.client().chat.completions.create
        answer = create(model="commands", messages=ASK)
        assert answer.choices[0].message.content == ASK[0]["content"]
        end = time.monotonic() + 30
        while not (lines := _lines(project)):
            assert time.monotonic() < end
            time.sleep(0.02)
        [line] = lines
        assert (line["id"], line["shadow"]) == (answer.id, "lora")
        assert (
            line["answer"] == create(model="commands/lora", messages=ASK).choices[0].message.content
        )
        assert "messages" not in line, "what people asked is logged only where that was wanted"
        create(model="commands/lora", messages=ASK)  # asked for by its name: no shadow
        promotion.set_shadow(project, None)
        create(model="commands", messages=ASK)
    assert len(_lines(project)) == 1


def _lines(project: Path) -> list[dict[str, Any]]:
    texts = [path.read_text("utf-8") for path in sorted((project / "traffic").glob("*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]
