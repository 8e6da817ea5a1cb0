"""Promote, roll back, canary, shadow: forms on a project's page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from tuneworthy.errors import ProjectError, TuneworthyError
from tuneworthy.server import promotion
from tuneworthy.server.ui.projects import details
from tuneworthy.server.ui.site import Site

Text = Annotated[str, Form(max_length=64)]
Name = Annotated[str, Form(max_length=200)]


def add(routes: APIRouter, site: Site) -> None:
    def changed(request: Request, task: str, change: Callable[..., Any], *what: Any) -> Response:
        project = site.project(task)
        name = request.state.visitor.name
        by = f"page, key {name}" if name else "page"
        try:
            change(project.folder, *what, by=by)
        except TuneworthyError as error:
            context = details(project, site)
            return site.page(
                request, "project.html", 400, project=project, **context, refused=error
            )
        return RedirectResponse(f"/p/{project.task}#serving", 303)

    @routes.post("/p/{task}/promote")
    def promote(request: Request, task: str, arm: Text, run: Name = "") -> Response:
        return changed(request, task, partial(promotion.promote, run=run or None), arm)

    @routes.post("/p/{task}/rollback")
    def rollback(request: Request, task: str) -> Response:
        return changed(request, task, promotion.rollback)

    @routes.post("/p/{task}/canary")
    def canary(request: Request, task: str, arm: Text = "", percent: Text = "10") -> Response:
        def change(folder: Any, *, by: str) -> None:
            promotion.set_canary(folder, arm or None, share(percent), by=by)

        return changed(request, task, change)

    @routes.post("/p/{task}/shadow")
    def shadow(request: Request, task: str, arm: Text = "") -> Response:
        return changed(request, task, promotion.set_shadow, arm or None)


def share(percent: str) -> float:
    """`10` -> 0.1. Raises ProjectError for what is no number."""
    try:
        return float(percent.replace(",", ".").rstrip("% ")) / 100
    except ValueError:
        raise ProjectError(
            f"'{percent}' is no share of requests", where="percent", hint="a number, such as 10"
        ) from None
