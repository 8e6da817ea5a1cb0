"""A worker in this process: what it does where a job is taken from it, or it is ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.jobs.serving import rows
from tuneworthy.engine import fake
from tuneworthy.errors import TuneworthyError
from tuneworthy.server.jobs import project, telling, worker
from tuneworthy.server.jobs.client import Jobs
from tuneworthy.server.jobs.queue import MOST_DEATHS, Job
from tuneworthy.server.jobs.worker import Worker, own_name

AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": 1.0}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(telling, "RENEW_SECONDS", 0.02)
    return Jobs(tmp_path / "state")


def create(jobs: Jobs, count: int = 90, **changes: Any) -> Job:
    with jobs.uploads.draft("rows.jsonl") as draft:
        draft.path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
        file = draft.keep("fine-tune", rows=draft.check())
    request = {
        "model": "fake",
        "base": "fake",
        "settings": {},
        "training_file": file["id"],
        "validation_file": None,
        "hyperparameters": AUTO,
        "suffix": None,
        "seed": 0,
        "metadata": None,
    }
    return jobs.create(request | changes)


def work(jobs: Jobs) -> tuple[Worker, threading.Thread]:
    made = Worker(jobs.state, jobs.queue, lambda text: None)
    thread = threading.Thread(target=made.work)
    thread.start()
    return made, thread


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def messages(jobs: Jobs, job: Job) -> list[str]:
    return [event.message for event in jobs.events(job, None, 100)[0]][::-1]


def test_a_worker_that_is_ended_puts_its_job_back(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fake.FakeEngine._answer
    slow = threading.Event()

    def waiting(*arguments: Any) -> Any:
        slow.set()
        time.sleep(0.02)
        return answer(*arguments)

    monkeypatch.setattr(fake.FakeEngine, "_answer", waiting)
    job = create(jobs)
    first, thread = work(jobs)
    assert slow.wait(30)
    first.ending.set()
    thread.join(10)
    assert not thread.is_alive()
    kept = jobs.get(job.id)
    assert kept and (kept.status, kept.owner, kept.deaths) == ("queued", None, 0)
    assert messages(jobs, job)[-1] == "The worker is ended; the job waits for another"
    second, thread = work(jobs)
    until(lambda: jobs.queue.get(job.id).status == "succeeded")  # type: ignore[union-attr]
    second.ending.set()
    thread.join(10)
    assert not [message for message in messages(jobs, job) if "died" in message]


def test_what_a_paused_life_had_in_hand_the_next_one_tells(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains, measures, and hears of the pause before it could tell anything of that."""
    monkeypatch.setattr(telling, "RENEW_SECONDS", 60.0)
    answer, job = fake.FakeEngine._answer, create(jobs)

    def answering(*arguments: Any) -> Any:
        if jobs.queue.get(job.id).status != "paused":  # type: ignore[union-attr]
            jobs.queue.change(job.id, "paused", "paused in the middle")
        return answer(*arguments)

    monkeypatch.setattr(fake.FakeEngine, "_answer", answering)
    assert (held := jobs.queue.claim("one"))
    made = Worker(jobs.state, jobs.queue, lambda text: None)
    assert made.bring_to_its_end(held) == "stopped: paused"
    assert not [message for message in messages(jobs, job) if "Step" in message]
    monkeypatch.undo()
    jobs.queue.change(job.id, "queued", "resumed")
    assert (held := jobs.queue.claim("two"))
    assert made.bring_to_its_end(held) == "succeeded"
    told = messages(jobs, job)
    assert sum(message.startswith("Step 1/1") for message in told) == 1
    assert sum(message.startswith("lora: score") for message in told) == 1
    assert len(told) == len(set(told)), "nothing is told twice"


def test_a_job_that_is_cancelled_as_it_is_published_leaves_no_model(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment: the model's name is on disk already, the end of the job is not."""
    publish = project.publish
    seen: list[str] = []

    def late(state: Path, job: Job, *rest: Any) -> dict[str, Any]:
        made = publish(state, job, *rest)
        seen.extend(path.name for path in project.models_of(state, job.id))
        jobs.queue.change(job.id, "cancelled", "cancelled at the last moment")
        return made

    monkeypatch.setattr(project, "publish", late)
    job = create(jobs)
    held = jobs.queue.claim("one")
    assert held is not None
    said = Worker(jobs.state, jobs.queue, lambda text: None).bring_to_its_end(held)
    assert said == "stopped: cancelled" and seen
    assert not [*project.models_of(jobs.state, job.id)]
    now = jobs.get(job.id)
    assert now and now.status == "cancelled" and now.result is None


def test_what_a_dead_worker_published_for_a_cancelled_job_is_taken_back(jobs: Jobs) -> None:
    job = create(jobs)
    held = jobs.queue.claim("one")
    assert held is not None
    Worker(jobs.state, jobs.queue, lambda text: None).bring_to_its_end(held)
    [*records] = project.models_of(jobs.state, job.id)
    assert records
    copy = jobs.state / "models" / "ft_copy.json"
    copy.write_text(records[0].read_text().replace(job.id, "ftjob-" + "0" * 24))
    made, thread = work(jobs)
    until(lambda: not copy.exists())
    made.ending.set()
    thread.join(10)
    assert all(path.exists() for path in records), "what belongs to a finished job stays"


def test_a_job_that_kills_its_workers_is_given_up(jobs: Jobs) -> None:
    job = create(jobs)
    for _ in range(MOST_DEATHS + 1):
        held = jobs.queue.claim("one")
    assert held is not None and held.deaths == MOST_DEATHS
    Worker(jobs.state, jobs.queue, lambda text: None).bring_to_its_end(held)
    now = jobs.get(job.id)
    assert now and now.status == "failed" and now.error
    assert now.error["code"] == "worker_died" and str(MOST_DEATHS) in now.error["message"]


def test_a_mistake_in_the_machinery_fails_the_job_and_not_the_worker(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(fake.FakeEngine, "train", broken)
    job, other = create(jobs), create(jobs, count=20)
    made, thread = work(jobs)
    until(lambda: jobs.queue.get(other.id).status == "failed")  # type: ignore[union-attr]
    made.ending.set()
    thread.join(10)
    now = jobs.get(job.id)
    assert now and now.error and now.error["message"] == "RuntimeError: out of luck"
    few = jobs.get(other.id)
    assert few and few.error and few.error["param"] == "training_file"
    assert str(jobs.state) not in few.error["message"], "paths are those of the job's folder"


def test_rows_are_the_jobs_own(jobs: Jobs) -> None:
    job = create(jobs)
    jobs.uploads.delete(job.request["training_file"])
    held = jobs.queue.claim("one")
    assert held is not None
    said = Worker(jobs.state, jobs.queue, lambda text: None).bring_to_its_end(held)
    assert said == "succeeded"


def test_two_workers_have_two_names(tmp_path: Path) -> None:
    (one, lock), (two, other) = own_name(tmp_path), own_name(tmp_path)
    assert one != two
    lock.release()
    again, third = own_name(tmp_path)
    assert again == one
    for held in (other, third):
        held.release()


def test_a_worker_that_does_not_see_the_state_folder_says_so(jobs: Jobs, tmp_path: Path) -> None:
    create(jobs)
    held = jobs.queue.claim("one")
    assert held is not None
    with pytest.raises(TuneworthyError, match="a worker sees the same state folder"):
        project.open_project(tmp_path / "elsewhere", held)
