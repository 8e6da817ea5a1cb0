"""Server and workers killed at random moments: every job ends, once, from where it stood."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes import tiny
from tests.server.jobs.serving import SLOW_WORKER, Server, environment, rows, running
from tuneworthy import store
from tuneworthy.server.jobs.worker import JOBS_VARIABLE


def is_whole(server: Server, job: object) -> None:
    """One result, one model, one run; every file reads to its end."""
    records = [json.loads(path.read_text()) for path in (server.state / "models").iterdir()]
    assert Counter(record["model"] for record in records)[job.fine_tuned_model] == 1  # type: ignore[attr-defined]
    folder = server.state / "jobs" / job.id  # type: ignore[attr-defined]
    assert len([*folder.glob("runs/[!.]*")]) == 1
    [run] = store.runs(folder)
    predictions = (run.predictions("lora")).read_text()
    assert predictions.endswith("\n")
    ids = [json.loads(line)["id"] for line in predictions.splitlines()]
    sealed = [row["id"] for row in store.read_jsonl(run.rows) if row["split"] == "test"]
    assert len(ids) == len(set(ids)) and set(ids) == set(sealed)
    created = [event for event in server.events(job.id) if "model created" in event.message]  # type: ignore[attr-defined]
    assert len(created) == 1


@pytest.mark.parametrize("victim", ["worker", "server"])
def test_killed_at_random_moments(tmp_path: Path, victim: str) -> None:
    dice = random.Random(victim)
    with running(tmp_path / "state") as server:
        file = server.upload(rows(300))
        made = [server.job(file, seed=n) for n in range(2)]
        kills = 0
        while not all(server.get(id_).status == "succeeded" for id_ in made):
            ready = server.until(server.worker)
            time.sleep(dice.uniform(0.0, 0.8))
            if kills < 3:
                kills += 1
                if victim == "worker":
                    os.kill(ready, signal.SIGKILL)
                    server.until(lambda: server.worker() is None)
                else:
                    server.kill()
                    # The worker ends with it: nobody works on a job that nobody watches.
                    server.until(lambda: server.worker() is None)
                    server.start()
        assert kills == 3
        for id_ in made:
            is_whole(server, server.get(id_))
        assert len([*(server.state / "models").iterdir()]) == 2 * len(made)


def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """With a real model, killed and then paused; to the bit: tests/engine/exactness/test_resume."""
    task = tmp_path / "tiny"
    tiny.save(task / "base")
    (task / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(70)))
    settings = {"task": "tiny", "base": "base", "data": {"examples": "rows.jsonl"}}
    (task / "tuneworthy.yaml").write_text(json.dumps(settings))
    with running(tmp_path / "state", tasks=[task], real=True) as server:
        chosen = {"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 3}
        id_ = server.job(server.upload(rows(70)), model="tiny", hyperparameters=chosen)

        def steps() -> int:
            found = [*(server.state / "jobs" / id_).glob("runs/[!.]*/arms/lora/model.jsonl")]
            return found[0].read_text().count("\n") if found else 0

        server.until(lambda: steps() >= 5)
        server.kill_worker()
        server.until(lambda: steps() >= 10)
        server.client.fine_tuning.jobs.pause(id_)
        server.until(lambda: f"{id_}: stopped: paused" in server.log.read_text())
        kept = steps()
        assert kept < 40
        server.client.fine_tuning.jobs.resume(id_)
        job = server.ended(id_)
        assert job.status == "succeeded", job.error
        is_whole(server, job)
        events = server.events(id_)
        said = [event.message for event in events if "training goes on" in event.message]
        first, second = (int(message.rsplit(" ", 1)[1]) for message in said)
        assert first >= 4 and second == kept >= 10, "a pause loses no step at all"
        told = [event.data for event in events if event.type == "metrics"]
        assert [data["step"] for data in told] == list(range(41)), "each step once, none missing"
        assert told[-1]["train_loss"] < told[1]["train_loss"]
        assert told[-1]["valid_loss"] < told[0]["valid_loss"]
        made = list(server.client.fine_tuning.jobs.checkpoints.list(id_))
        assert len(made) == 3, "the newest are kept"
        weights = {
            store.sha256_file(path)
            for path in (server.state / "jobs" / id_).glob("checkpoints/*/arms/lora/model/*.safet*")
        }
        run = server.state / job.result["run"]
        own = store.sha256_file(run / "arms/lora/model/adapter_model.safetensors")
        assert len(weights) == 3 and own in weights
        assert made[0].metrics.valid_loss == told[made[0].step_number]["valid_loss"]


def test_workers_on_other_machines(tmp_path: Path, postgresql: str) -> None:
    """PostgreSQL, and two more workers started by hand; one dies for good, another takes over."""
    state = tmp_path / "state"
    with running(state, jobs=postgresql) as server:
        log = tmp_path / "others.log"
        others = []
        with log.open("wb") as output:
            for _ in range(2):
                process = subprocess.Popen(
                    [*SLOW_WORKER, str(state)],
                    env={**environment(), JOBS_VARIABLE: postgresql},
                    stdout=output,
                    stderr=output,
                )
                others.append(process)
        try:
            server.until(lambda: log.read_text().count("is ready") == 2)
            file = server.upload(rows(400))
            made = [server.job(file, seed=n) for n in range(4)]
            server.until(lambda: log.read_text().count("begun") >= 2)
            others[0].kill()
            assert all(server.ended(id_).status == "succeeded" for id_ in made)
            others[1].terminate()
            assert others[1].wait(20) == 0
        finally:
            for process in others:
                process.kill()
                process.wait()
        for id_ in made:
            is_whole(server, server.get(id_))
        said = [event.message for id_ in made for event in server.events(id_)]
        assert sum(" died; " in message for message in said) == 1
        assert not (state / "jobs.sqlite").exists()
