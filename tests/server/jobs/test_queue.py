"""The queue alone, on SQLite and on PostgreSQL: who may have a job, and who may write of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneworthy.errors import ProjectError
from tuneworthy.server.jobs import queue as queues
from tuneworthy.server.jobs.queue import CHANGES, WAITING, Event, Lost, NotNow, Queue, Unreachable


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    where: Any = tmp_path
    if request.param == "postgresql":
        where = request.getfixturevalue("postgresql")
    made = Queue(where)
    with made.engine.begin() as connection:
        connection.execute(made.tables.EVENTS.delete())
        connection.execute(made.tables.JOBS.delete())
    yield made
    made.close()


def add(queue: Queue, **request: Any) -> str:
    return queue.create(f"ftjob-{secrets.token_hex(12)}", request).id


def messages(queue: Queue, id_: str) -> list[str]:
    return [event.message for event in queue.events(id_, None, 100)[0]][::-1]


def test_the_oldest_job_is_claimed_first_and_by_one_alone(queue: Queue) -> None:
    first, second = add(queue, number=1), add(queue, number=2)
    one, two = queue.claim("one"), queue.claim("two")
    assert one and two and (one.id, two.id) == (first, second)
    assert one.request == {"number": 1}
    assert queue.claim("three") is None


def test_many_claim_at_once_and_nobody_gets_anothers(queue: Queue) -> None:
    wanted = {add(queue) for _ in range(20)}
    got: list[str] = []

    def work(name: str) -> None:
        while job := queue.claim(name):
            got.append(job.id)
            queue.finish(job, "succeeded", Event("end", "end"))

    threads = [threading.Thread(target=work, args=(f"worker-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 20 and set(got) == wanted


def test_who_loses_a_job_can_write_no_more(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = add(queue)
    monkeypatch.setattr(queues, "LEASE_SECONDS", 0.05)
    slow = queue.claim("slow")
    assert slow is not None
    time.sleep(0.1)
    quick = queue.claim("quick")
    assert quick is not None and quick.id == id_ and quick.fence > slow.fence
    assert quick.deaths == 1 and "slow died" in messages(queue, id_)[-1]
    late = Event("late", "too late")
    for write in (
        lambda: queue.renew(slow),
        lambda: queue.tell(slow, [late]),
        lambda: queue.tell(slow, [late], "running"),
        lambda: queue.release(slow, late),
        lambda: queue.finish(slow, "succeeded", late, result={"by": "slow"}),
    ):
        with pytest.raises(Lost):
            write()
    queue.finish(quick, "succeeded", Event("end", "done"), result={"by": "quick"})
    with pytest.raises(Lost):
        queue.finish(quick, "succeeded", Event("again", "done again"))
    job = queue.get(id_)
    assert job and (job.status, job.result) == ("succeeded", {"by": "quick"})
    assert messages(queue, id_)[-1] == "done" and "too late" not in messages(queue, id_)


def test_a_lease_that_is_renewed_lasts(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "LEASE_SECONDS", 2.0)  # machines are busy
    add(queue)
    job = queue.claim("one")
    assert job is not None
    for _ in range(5):
        time.sleep(0.5)
        queue.renew(job)
        assert queue.claim("two") is None


def test_a_name_takes_up_at_once_what_it_held(queue: Queue) -> None:
    id_ = add(queue)
    queue.claim("one")
    assert queue.claim("two") is None
    again = queue.claim("one")
    assert again is not None and (again.id, again.deaths) == (id_, 1)


@pytest.mark.parametrize("status", CHANGES)
def test_changes_take_the_job_from_its_worker(queue: Queue, status: queues.Status) -> None:
    id_ = add(queue)
    job = queue.claim("one")
    assert job is not None
    if status == "queued":
        queue.change(id_, "paused", "paused")
        assert queue.claim("two") is None
    changed = queue.change(id_, status, "changed")
    assert changed.status == status and changed.owner is None
    assert (changed.finished is not None) == (status == "cancelled")
    with pytest.raises(Lost):
        queue.renew(job)
    assert (queue.claim("two") is not None) == (status in WAITING)


def test_what_has_ended_is_not_changed(queue: Queue) -> None:
    id_ = add(queue)
    job = queue.claim("one")
    assert job is not None
    queue.finish(job, "failed", Event("end", "broke"), error={"message": "broke"})
    for status in CHANGES:
        with pytest.raises(NotNow):
            queue.change(id_, status, "changed")
    with pytest.raises(KeyError):
        queue.change("ftjob-none", "cancelled", "changed")


def test_events_are_told_once_and_paged(queue: Queue) -> None:
    id_ = add(queue)
    job = queue.claim("one")
    assert job is not None
    steps = [Event(f"step:{n}", f"step {n}", data={"step": n}) for n in range(5)]
    queue.tell(job, steps[:3])
    queue.tell(job, steps)
    queue.release(job, Event("put back", "put back"))
    assert messages(queue, id_)[1:] == [f"step {n}" for n in range(5)] + ["put back"]
    newest, more = queue.events(id_, None, 3)
    assert more and [event.number for event in newest] == [7, 6, 5]
    rest, more = queue.events(id_, 5, 10)
    assert not more and [event.number for event in rest] == [4, 3, 2, 1]
    assert rest[0].data == {"step": 2}


def test_only_a_job_that_comes_no_further_counts_its_dead_workers(queue: Queue) -> None:
    add(queue)
    step = Event("lora:step:1", "Step 1/2", progress=True)

    def deaths() -> int:
        job = queue.claim("one")
        assert job is not None
        queue.tell(job, [Event(f"{job.fence}:1", "loading"), step])
        return job.deaths

    # The first one came further; those after it say again what is known.
    assert [deaths() for _ in range(4)] == [0, 1, 2, 3]
    step = Event("lora:step:2", "Step 2/2", progress=True)
    assert [deaths() for _ in range(3)] == [4, 1, 2]


def test_pages_of_jobs(queue: Queue) -> None:
    made = [add(queue) for _ in range(5)][::-1]
    found, more = queue.page(None, 2)
    assert more and [job.id for job in found] == made[:2]
    found, more = queue.page(made[1], 3)
    assert not more and [job.id for job in found] == made[2:]
    with pytest.raises(KeyError):
        queue.page("ftjob-none", 3)


def test_another_kind_of_database_is_an_error() -> None:
    with pytest.raises(ProjectError) as wrong:
        Queue("mysql://root@host/jobs")
    assert str(wrong.value) == "--jobs: the queue of jobs is SQLite or PostgreSQL, not 'mysql'"
    assert wrong.value.hint == "--jobs postgresql://user@host/database"


def test_a_database_that_does_not_answer_is_said_in_a_line() -> None:
    with pytest.raises(Unreachable) as wrong:
        Queue("postgresql://somebody:secret@127.0.0.1:1/jobs")
    assert str(wrong.value).startswith("--jobs: the queue of jobs does not answer: connection fail")
    assert "secret" not in str(wrong.value) and "\n" not in str(wrong.value)
