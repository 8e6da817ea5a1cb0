"""Start a run: which arms, how long, and whether to begin anew."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from tuneworthy.config import ARM_NAMES, PROJECT_FILE, Project, load_project
from tuneworthy.errors import TuneworthyError
from tuneworthy.server.ui.site import Site

BUDGETS = ("2m", "10m", "30m", "2h", "8h", "none")


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/p/{task}/start")
    def form(request: Request, task: str) -> Response:
        project = site.project(task)
        return site.page(request, "start.html", **_form(project, _given(project), None))

    @routes.post("/p/{task}/start")
    def start(
        request: Request,
        task: str,
        budget: Annotated[str, Form(max_length=32)] = "",
        which: Annotated[str, Form(max_length=8)] = "auto",
        arms: Annotated[list[str] | None, Form()] = None,
        fresh: Annotated[bool, Form()] = False,
        exhaustive: Annotated[bool, Form()] = False,
    ) -> Response:
        project = site.project(task)
        given = {
            "budget": budget.strip() or "none",
            "arms": "auto" if which == "auto" else list(arms or ()),
            "exhaustive": exhaustive,
        }
        try:
            load_project(project.folder / PROJECT_FILE, given)
            site.decides.start(project, given, fresh=fresh)
        except TuneworthyError as error:
            shown = _form(project, given | {"fresh": fresh}, error)
            return site.page(request, "start.html", 400, **shown)
        return RedirectResponse(f"/p/{project.task}/watch", 303)


def _given(project: Project) -> dict[str, Any]:
    """What the project file says, for a form that is not filled in yet."""
    arms = project.arms if project.arms == "auto" else list(project.arms)
    return {"budget": written(project.budget), "arms": arms, "exhaustive": project.exhaustive}


def _form(
    project: Project, given: dict[str, Any], refused: TuneworthyError | None
) -> dict[str, Any]:
    return {
        "project": project,
        "names": ARM_NAMES,
        "budgets": BUDGETS,
        "given": {"fresh": False, **given},
        "refused": refused,
    }


def written(seconds: float | None) -> str:
    """A duration as the project file has it: `30m`."""
    if seconds is None:
        return "none"
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
