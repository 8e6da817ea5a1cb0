"""`/v1/fine_tuning/jobs`: OpenAI's fine-tuning API over the queue of jobs."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from tuneworthy.server.jobs import bases
from tuneworthy.server.jobs.client import Jobs
from tuneworthy.server.jobs.project import decides
from tuneworthy.server.jobs.queue import Event, Job, NotNow, Status
from tuneworthy.server.openai.paging import bad_limit, page, page_of, problem, unknown_after
from tuneworthy.store import mended

Count = Annotated[int, Field(ge=1, le=1024, strict=True)] | Literal["auto"] | None
Multiplier = Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] | None
FileId = Annotated[str, Field(max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(_Body):
    """auto, or nothing: as the project file's defaults say."""

    n_epochs: Count = None
    batch_size: Count = None
    learning_rate_multiplier: Multiplier = None


class Supervised(_Body):
    """The one way of training there is."""

    hyperparameters: Hyperparameters | None = None


class Method(_Body):
    """`supervised`; its settings."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class NewJob(_Body):
    """What POST /v1/fine_tuning/jobs takes."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: FileId
    validation_file: FileId | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """As older clients write it."""
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    """`{"tuneworthy": "decide"}` measures every arm, and says whether training was worth it."""
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    """None: nothing of a job leaves this machine."""


def router(house: Any) -> APIRouter:
    """The routes; `house` has the queue of jobs, the projects and the stand-ins."""
    jobs: Jobs = house.jobs
    routes = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @routes.post("")
    def create(body: NewJob) -> Response:
        return _create(body, house, jobs)

    @routes.get("")
    def every(after: str | None = None, limit: int = 20) -> Response:
        refused = bad_limit(limit)
        if refused is not None:
            return refused
        try:
            found, more = jobs.page(after, limit)
        except KeyError:
            return unknown_after(str(after))
        return page([shown(job) for job in found], more)

    @routes.get("/{id_}")
    def retrieve(id_: str) -> Response:
        job = jobs.get(id_)
        return JSONResponse(shown(job)) if job else _no_job(id_)

    @routes.post("/{id_}/cancel")
    def cancel(id_: str) -> Response:
        return _change(jobs, id_, "cancelled")

    @routes.post("/{id_}/pause")
    def pause(id_: str) -> Response:
        return _change(jobs, id_, "paused")

    @routes.post("/{id_}/resume")
    def resume(id_: str) -> Response:
        return _change(jobs, id_, "queued")

    @routes.get("/{id_}/events")
    def events(id_: str, after: str | None = None, limit: int = 20) -> Response:
        return _events(jobs, id_, after, limit)

    @routes.get("/{id_}/checkpoints")
    def checkpoints(id_: str, after: str | None = None, limit: int = 10) -> Response:
        job = jobs.get(id_)
        return page_of(_checkpoints(job), after, limit) if job else _no_job(id_)

    return routes


def _create(body: NewJob, house: Any, jobs: Jobs) -> Response:
    for name in ("training_file", "validation_file"):
        id_ = getattr(body, name)
        if id_ is None:
            continue
        record = jobs.uploads.get(id_)
        if record is None:
            return problem(400, f"no file has the id '{id_}'", param=name, code="invalid_file")
        if record["purpose"] != "fine-tune":
            return problem(400, f"'{id_}' was not uploaded for fine-tune", param=name)
    known = house.projects, house.stand_ins
    found = bases.base_for(body.model, *known)
    if found is None:
        return problem(
            404,
            f"'{body.model}' is no model that can be trained here (known: "
            f"{', '.join(bases.trainable(*known))})",
            param="model",
            code="model_not_found",
        )
    given = body.hyperparameters
    if body.method and body.method.supervised and body.method.supervised.hyperparameters:
        given = body.method.supervised.hyperparameters
    base, settings = found
    request = {
        "model": mended(body.model),
        "base": base,
        "settings": settings,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "hyperparameters": {
            name: value or "auto"
            for name, value in (given or Hyperparameters()).model_dump().items()
        },
        "suffix": re.sub(r"[^A-Za-z0-9_-]+", "-", body.suffix) if body.suffix else None,
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "metadata": body.metadata,
    }
    if "tuneworthy" in (body.metadata or {}) and not decides(request):
        return problem(400, "metadata.tuneworthy may say: decide", param="metadata.tuneworthy")
    return JSONResponse(shown(jobs.create(request)))


def _change(jobs: Jobs, id_: str, status: Status) -> Response:
    try:
        return JSONResponse(shown(jobs.change(id_, status)))
    except KeyError:
        return _no_job(id_)
    except NotNow as now:
        text = f"the job is {now.status}: it cannot become {status}"
        return problem(400, text, param="id", code="invalid_status")


def _events(jobs: Jobs, id_: str, after: str | None, limit: int) -> Response:
    refused = bad_limit(limit)
    if refused is not None:
        return refused
    job = jobs.get(id_)
    if job is None:
        return _no_job(id_)
    number = None
    if after is not None:
        mark = re.fullmatch(rf"ftevent-{job.id[6:]}-(\d{{1,9}})", after)
        if mark is None:
            return unknown_after(after)
        number = int(mark[1])
    found, more = jobs.events(job, number, limit)
    return page([_event(job, event) for event in found], more)


def shown(job: Job) -> dict[str, Any]:
    """A job as OpenAI's API shows it; `result` is ours."""
    request, result = job.request, job.result or {}
    hyperparameters = result.get("hyperparameters") or request["hyperparameters"]
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": int(job.created),
        "finished_at": int(job.finished) if job.finished else None,
        "status": job.status,
        "model": request["model"],
        "fine_tuned_model": result.get("fine_tuned_model"),
        "training_file": request["training_file"],
        "validation_file": request["validation_file"],
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "seed": request["seed"],
        "suffix": request["suffix"],
        "metadata": request["metadata"],
        "trained_tokens": result.get("trained_tokens"),
        "result_files": result.get("result_files", []),
        "error": job.error,
        "estimated_finish": None,
        "integrations": [],
        "organization_id": "tuneworthy",
        "result": result.get("result"),
    }


def _event(job: Job, event: Event) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{job.id[6:]}-{event.number}",
        "created_at": int(event.created),
        "level": event.level,
        "message": mended(event.message),
        "type": "metrics" if event.data is not None else "message",
        "data": event.data,
    }


def _checkpoints(job: Job) -> list[dict[str, Any]]:
    """Newest first, as OpenAI lists them; each one's name answers in chat."""
    made = (job.result or {}).get("checkpoints", [])
    return [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": f"ftckpt-{job.id[6:]}-{checkpoint['step']}",
            "created_at": int(job.finished or job.created),
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": checkpoint["model"],
            "step_number": checkpoint["step"],
            "metrics": checkpoint["metrics"],
        }
        for checkpoint in reversed(made)
    ]


def _no_job(id_: str) -> JSONResponse:
    return problem(404, f"no fine-tuning job has the id '{id_:.60}'", param="id", code="not_found")
