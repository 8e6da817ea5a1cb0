"""The list of projects, and one project: its runs and what answers for it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tuneworthy import store
from tuneworthy.config import Project
from tuneworthy.report import words
from tuneworthy.server import promotion
from tuneworthy.server.ui import progress
from tuneworthy.server.ui.site import Site
from tuneworthy.store import RunFolder
from tuneworthy.workflows.serving import measured_arms


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/")
    def every(request: Request) -> Response:
        cards = [card(project, site) for project in site.house.projects.values()]
        return site.page(request, "projects.html", cards=cards)

    @routes.get("/p/{task}")
    def one(request: Request, task: str) -> Response:
        project = site.project(task)
        return site.page(request, "project.html", project=project, **details(project, site))


def card(project: Project, site: Site) -> dict[str, Any]:
    """What the list says of a project."""
    runs = store.runs(project.folder)
    finished = [run for run in runs if run.decision.exists()]
    answering = promotion.answering(project.folder)
    return {
        "task": project.task,
        "base": project.base,
        "instruction": project.instruction,
        "runs": len(runs),
        "verdict": _verdict(finished[-1]) if finished else None,
        "run": finished[-1].path.name if finished else None,
        "answering": answering.arm if answering else None,
        "working": site.decides.running(project.task) or any(map(progress.held, runs[-1:])),
    }


def details(project: Project, site: Site) -> dict[str, Any]:
    """What a project's own page shows."""
    every = list(reversed(store.runs(project.folder)))
    newest = next((run for run in every if run.decision.exists()), None)
    return {
        "runs": [_run(run) for run in every],
        "arms": measured_arms(newest) if newest else [],
        "newest": newest.path.name if newest else None,
        "answering": promotion.answering(project.folder),
        "promotion": asdict(promotion.read(project.folder)),
        "history": list(reversed(promotion.history(project.folder)))[:20],
        "working": site.decides.running(project.task) or any(map(progress.held, every[:1])),
    }


def _run(run: RunFolder) -> dict[str, Any]:
    config = store.read_json(run.config)
    return {
        "name": run.path.name,
        "created": config["created"][:16].replace("T", " "),
        "base": config["base"]["name"],
        "verdict": _verdict(run) if run.decision.exists() else None,
    }


def _verdict(run: RunFolder) -> dict[str, str]:
    decision = store.read_json(run.decision)
    badge = words.BADGES[decision["verdict"]]
    if decision["verdict"] == "adopt":
        badge += f" · {decision['arm']}"
    return {"kind": decision["verdict"], "badge": badge, "headline": words.headline(decision)}
