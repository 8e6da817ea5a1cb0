"""An existing script against a real server, with OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.server.jobs.serving import STAND_IN, Server, rows
from tuneworthy import store


@pytest.fixture(scope="module")
def file(server: Server) -> str:
    return server.upload(rows())


def test_from_upload_to_a_model(server: Server, file: str) -> None:
    jobs = server.client.fine_tuning.jobs
    made = jobs.create(
        model="fake",
        training_file=file,
        validation_file=server.upload(rows(30, seed=5), "validation.jsonl"),
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": 2,
                    "batch_size": 4,
                    "learning_rate_multiplier": 0.5,
                }
            },
        },
        suffix="my commands",
        seed=7,
        metadata={"team": "home"},
    )
    assert made.status == "validating_files" and made.fine_tuned_model is None
    job = server.ended(made.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == f"ft:fake:my-commands:{job.id[-8:]}"
    assert job.error is None and job.finished_at >= job.created_at
    assert (job.seed, job.metadata) == (7, {"team": "home"})
    chosen = job.hyperparameters
    assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (2, 4, 0.5)
    assert job.method.supervised.hyperparameters.batch_size == 4
    # The validation file is what losses are measured on; the test rows are the training file's.
    run = server.state / job.result["run"]
    split = {row["source"].partition(".")[0]: set() for row in store.read_jsonl(run / "rows.jsonl")}
    for row in store.read_jsonl(run / "rows.jsonl"):
        split[row["source"].partition(".")[0]].add(row["split"])
    assert split == {"training": {"train", "test"}, "validation": {"dev"}}
    fit = json.loads((run / "arms/lora/fit.json").read_text())
    assert fit["training"]["settings"]["learning_rate"] == pytest.approx(5e-4)
    assert job.trained_tokens == fit["training"]["tokens"] > 0
    assert job.result["n"] == len(store.read_jsonl(run / "arms/lora/predictions.jsonl"))
    assert 0 < job.result["score"] < 1
    # And it answers, as the rows it was trained on do.
    known = next(row for row in store.read_jsonl(run / "rows.jsonl") if row["split"] == "train")
    assert said(server, job.fine_tuned_model, known) == known["completion"]
    assert job.fine_tuned_model in [model.id for model in server.client.models.list()]


def said(server: Server, model: str, row: dict[str, Any]) -> str | None:
    answer = server.client.chat.completions.create(model=model, messages=row["messages"])
    return answer.choices[0].message.content


def test_events_tell_losses_and_progress(server: Server, file: str) -> None:
    id_ = server.job(file)
    job = server.ended(id_)
    events = server.events(id_)
    assert events[0].message == "Created fine-tuning job"
    counts = json.loads((server.state / job.result["run"] / "config.json").read_text())
    rows_in = counts["data"]["rows"]
    said = f"Files validated: {rows_in['train']} training, {rows_in['dev']} validation, "
    assert events[2].message.startswith(f"{said}{rows_in['test']} sealed test rows")
    assert job.fine_tuned_model in events[-1].message
    [step] = [event for event in events if event.type == "metrics"]
    assert step.data["step"] == step.data["total_steps"] == 1
    assert 0 < step.data["train_loss"] < 1 and 0 < step.data["valid_loss"] < 1
    assert len({event.id for event in events}) == len(events) > 7, "more than one page"
    newest = server.client.fine_tuning.jobs.list_events(id_, limit=2)
    assert newest.has_more and [e.id for e in newest.data] == [e.id for e in events[:-3:-1]]


def test_checkpoints_and_the_result_file(server: Server, file: str) -> None:
    job = server.ended(server.job(file))
    [checkpoint] = server.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-1"
    assert checkpoint.fine_tuning_job_id == job.id and checkpoint.step_number == 1
    [result] = job.result_files
    assert server.client.files.retrieve(result).purpose == "fine-tune-results"
    table = server.client.files.content(result).text.splitlines()
    assert table[0] == "step,train_loss,valid_loss" and len(table) == 3
    assert float(table[2].split(",")[2]) == checkpoint.metrics.valid_loss
    run = server.state / job.result["run"]
    known = next(row for row in store.read_jsonl(run / "rows.jsonl") if row["split"] == "train")
    assert said(server, checkpoint.fine_tuned_model_checkpoint, known) == known["completion"]


def test_a_job_that_decides_says_whether_training_was_worth_it(server: Server) -> None:
    file = server.upload(rows(100))
    job = server.ended(server.job(file, metadata={"tuneworthy": "decide"}))
    assert job.status == "succeeded", job.error
    assert job.metadata == {"tuneworthy": "decide"}
    decision = json.loads((server.state / job.result["run"] / "decision.json").read_text())
    for key in ("verdict", "fine_tune", "because", "arm"):
        assert job.result[key] == decision[key]
    assert {arm["arm"] for arm in job.result["arms"]} >= {"zero-shot", "few-shot", "lora"}
    assert job.result["verdict"] in server.events(job.id)[-1].message
    [record] = [
        found
        for path in (server.state / "models").iterdir()
        if (found := json.loads(path.read_text()))["model"] == job.fine_tuned_model
    ]
    assert record["arm"] == job.result["arm"]
    run = server.state / job.result["run"]
    asked = store.read_jsonl(run / f"arms/{record['arm']}/predictions.jsonl")[0]
    row = next(row for row in store.read_jsonl(run / "rows.jsonl") if row["id"] == asked["id"])
    assert said(server, job.fine_tuned_model, row) == asked["text"], "what was measured is served"


def test_the_older_way_to_write_hyperparameters(server: Server, file: str) -> None:
    job = server.ended(server.job(file, hyperparameters={"n_epochs": 4, "batch_size": "auto"}))
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (4, 8)


def test_a_hosted_models_name_stands_for_a_base(server: Server, file: str) -> None:
    job = server.ended(server.job(file, model=STAND_IN, suffix=None))
    assert job.model == STAND_IN
    assert job.fine_tuned_model == f"ft:{STAND_IN}::{job.id[-8:]}"


def test_jobs_are_listed_newest_first(server: Server, file: str) -> None:
    made = [server.job(file) for _ in range(3)]
    for id_ in made:
        server.client.fine_tuning.jobs.cancel(id_)
    page = server.client.fine_tuning.jobs.list(limit=2)
    assert [job.id for job in page.data] == made[:0:-1] and page.has_more
    following = server.client.fine_tuning.jobs.list(limit=1, after=made[1])
    assert [job.id for job in following.data] == made[:1]
    every = [job.id for job in server.client.fine_tuning.jobs.list(limit=2)]
    assert len(set(every)) == len(every) >= 3, "the client pages through to the end"


def test_cancel_ends_a_job_in_the_middle(server: Server) -> None:
    id_ = server.job(server.upload(rows(400)))
    server.measuring(id_)
    job = server.client.fine_tuning.jobs.cancel(id_)
    assert job.status == "cancelled" and job.finished_at
    server.until(lambda: f"{id_}: stopped: cancelled" in server.log.read_text())
    assert len(server.predictions(id_)) < 80, "it stopped within the measurement"
    assert server.get(id_).fine_tuned_model is None
    assert not [p for p in (server.state / "models").iterdir() if id_[-8:] in p.name]
    with pytest.raises(openai.BadRequestError, match="the job is cancelled") as refused:
        server.client.fine_tuning.jobs.resume(id_)
    assert refused.value.code == "invalid_status"


def test_pause_keeps_what_is_done_and_resume_goes_on(server: Server) -> None:
    id_ = server.job(server.upload(rows(400)))
    server.measuring(id_)
    assert server.client.fine_tuning.jobs.pause(id_).status == "paused"
    server.until(lambda: f"{id_}: stopped: paused" in server.log.read_text())
    kept = [record["id"] for record in server.predictions(id_)]
    assert 3 <= len(kept) < 80
    other = server.ended(server.job(server.upload(rows(100))))
    assert other.status == "succeeded" and server.get(id_).status == "paused"
    assert server.client.fine_tuning.jobs.resume(id_).status == "queued"
    assert server.ended(id_).status == "succeeded"
    after = [record["id"] for record in server.predictions(id_)]
    assert after[: len(kept)] == kept and len(set(after)) == len(after) == 80
    assert sum("Step 1/1" in event.message for event in server.events(id_)) == 1


def test_too_few_rows_fail_the_job_and_name_the_file(server: Server, file: str) -> None:
    job = server.ended(server.job(server.upload(rows(12))))
    assert job.status == "failed" and job.fine_tuned_model is None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert "12" in job.error.message
    event = server.events(job.id)[-1]
    assert event.level == "error" and event.message == job.error.message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "gpt-7"}, "model"),
        ({"model": "../../secret"}, "model"),
        ({"training_file": "file-" + "0" * 24}, "training_file"),
        ({"training_file": "../../etc"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"metadata": {"tuneworthy": "maybe"}}, "metadata.tuneworthy"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"extra_body": {"n_epoch": 3}}, "n_epoch"),
    ],
)
def test_what_cannot_be_is_refused(
    server: Server, file: str, changes: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        server.job(file, **changes)
    assert refused.value.status_code in (400, 404)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


def test_unknown_ids_are_not_found(server: Server) -> None:
    jobs = server.client.fine_tuning.jobs
    calls = (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events)
    for id_ in ("ftjob-" + "0" * 24, "none", "..%2f..%2fetc"):
        for call in (*calls, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError):
                call(id_)
