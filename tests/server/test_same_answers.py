"""What is measured is what is served: every arm, row by row."""

from __future__ import annotations

import pytest

from tests.server.live import ARMS, Live
from tuneworthy import store
from tuneworthy.server import promotion
from tuneworthy.workflows.serving import measured_arms

EVERY = [(task, arm) for task, arms in ARMS.items() for arm in arms]


def test_the_runs_measured_every_arm(live: Live) -> None:
    for task, arms in ARMS.items():
        run = promotion.finished_run(live.house.projects[task].folder)
        assert sorted(measured_arms(run)) == sorted(arms)


@pytest.mark.parametrize(("task", "arm"), EVERY, ids=[f"{t}/{a}" for t, a in EVERY])
def test_the_server_says_what_was_measured(live: Live, task: str, arm: str) -> None:
    run = promotion.finished_run(live.house.projects[task].folder)
    tested = {row["id"]: row for row in store.read_jsonl(run.rows) if row["split"] == "test"}
    predictions = store.read_jsonl(run.predictions(arm))
    assert len(predictions) == len(tested) == 20
    opened = (run.path / "seal.json").read_bytes()
    client = live.client()
    for said in predictions:
        prompt = [turn for turn in tested[said["id"]]["messages"] if turn["role"] != "assistant"]
        answer = client.chat.completions.create(model=f"{task}/{arm}", messages=prompt)
        [choice] = answer.choices
        assert choice.message.content == said["text"]
        assert choice.finish_reason == said["finish_reason"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == said["prompt_tokens"]
        assert answer.usage.completion_tokens == said["output_tokens"]
    assert (run.path / "seal.json").read_bytes() == opened, "serving opens no seal"
