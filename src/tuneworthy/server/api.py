"""`/api`: what the page and scripts of whoever runs the server need, beside OpenAI's routes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from tuneworthy import store
from tuneworthy.config import Project
from tuneworthy.errors import TuneworthyError
from tuneworthy.server import promotion
from tuneworthy.server.house import House
from tuneworthy.server.openai.problems import Problem
from tuneworthy.workflows.serving import measured_arms

Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Promote(_Body):
    """The arm to answer from now on, and the run that it is of: by default the newest with a decision."""

    arm: Name
    run: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class CanaryBody(_Body):
    """A second arm and its share of the requests; None ends it."""

    arm: Name | None
    share: Annotated[float, Field(ge=0, le=1)] = 0.1


class Shadow(_Body):
    """An arm to answer in the background; None ends it."""

    arm: Name | None


def router(house: House) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["tasks"])

    def project(task: str) -> Project:
        found = house.projects.get(task)
        if found is None:
            raise Problem(404, f"no task is called '{task:.64}'", param="task", code="not_found")
        return found

    def changed(task: str, change: Any, *arguments: Any) -> Response:
        try:
            after = change(project(task).folder, *arguments, by="server")
        except TuneworthyError as error:
            text = f"{error} ({error.hint})" if error.hint else str(error)
            raise Problem(400, text) from None
        return JSONResponse(asdict(after))

    @routes.get("/tasks")
    def tasks() -> Response:
        return JSONResponse({"tasks": [_task(p) for p in house.projects.values()]})

    @routes.post("/tasks/{task}/promote")
    def promote(task: str, body: Promote) -> Response:
        return changed(task, partial(promotion.promote, run=body.run), body.arm)

    @routes.post("/tasks/{task}/rollback")
    def rollback(task: str) -> Response:
        return changed(task, promotion.rollback)

    @routes.post("/tasks/{task}/canary")
    def canary(task: str, body: CanaryBody) -> Response:
        return changed(task, promotion.set_canary, body.arm, body.share)

    @routes.post("/tasks/{task}/shadow")
    def shadow(task: str, body: Shadow) -> Response:
        return changed(task, promotion.set_shadow, body.arm)

    return routes


def _task(project: Project) -> dict[str, Any]:
    """A task with its runs and what answers for it."""
    answering = promotion.answering(project.folder)
    runs = [
        {"name": run.path.name, "finished": run.decision.exists(), "arms": measured_arms(run)}
        for run in store.runs(project.folder)
    ]
    return {
        "task": project.task,
        "base": project.base,
        "answering": answering and asdict(answering),
        "promotion": asdict(promotion.read(project.folder)),
        "runs": runs,
    }
