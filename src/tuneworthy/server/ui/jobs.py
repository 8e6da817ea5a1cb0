"""Fine-tuning jobs: what was asked for, how far it is, what came of it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from tuneworthy.server.jobs.queue import CHANGES, Job, NotNow, Status
from tuneworthy.server.ui.site import Site, Unknown

SHOWN, EVENTS = 50, 100
VERBS: dict[str, Status] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}


def add(routes: APIRouter, site: Site) -> None:
    jobs = site.house.jobs

    @routes.get("/jobs")
    def every(request: Request, after: str = "") -> Response:
        try:
            found, more = jobs.page(after or None, SHOWN)
        except KeyError:
            raise Unknown(f"There is no job '{after[:64]}'.") from None
        rows = [_row(job) for job in found]
        return site.page(request, "jobs.html", jobs=rows, more=found[-1].id if more else None)

    @routes.get("/jobs/{id_}")
    def one(request: Request, id_: str) -> Response:
        job = _job(id_)
        events, _ = jobs.events(job, None, EVENTS)
        told = [{"time": _time(e.created), "level": e.level, "text": e.message} for e in events]
        return site.page(request, "job.html", job=_row(job), events=told)

    @routes.post("/jobs/{id_}/{verb}")
    def change(id_: str, verb: str) -> Response:
        job = _job(id_)
        if verb not in VERBS:
            raise Unknown(f"A job cannot be told to '{verb[:32]}'.")
        # One that has ended in the meantime: its page says so.
        with suppress(NotNow):
            jobs.change(job.id, VERBS[verb])
        return RedirectResponse(f"/jobs/{job.id}", 303)

    def _job(id_: str) -> Job:
        job = jobs.get(id_)
        if job is None:
            raise Unknown(f"There is no job '{id_[:64]}'.")
        return job


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "created": _time(job.created),
        "finished": _time(job.finished) if job.finished else None,
        "status": job.status,
        "request": job.request,
        "result": job.result,
        "error": job.error,
        "verbs": [verb for verb, status in VERBS.items() if job.status in CHANGES[status]],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
