"""A run as it happens. The page asks for its middle part again while a process works."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from tuneworthy.server.ui import progress
from tuneworthy.server.ui.site import Site


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/p/{task}/watch")
    def watch(request: Request, task: str) -> Response:
        project = site.project(task)
        template = "watched.html" if "x-part" in request.headers else "watch.html"
        return site.page(request, template, project=project, **_context(site, task))

    @routes.post("/p/{task}/stop")
    def stop(request: Request, task: str) -> Response:
        site.decides.stop(site.project(task).task)
        return RedirectResponse(f"/p/{task}/watch", 303)


def _context(site: Site, task: str) -> dict[str, Any]:
    seen = progress.read(site.project(task), site.decides)
    return {
        "seen": seen,
        "summary": progress.in_words(seen),
        "charts": [
            {
                "title": f"{curve.arm}, {curve.phase}",
                # The drawer escapes what stands in a chart.
                "wide": Markup(curve.drawn(progress.WIDE)),  # noqa: S704
                "narrow": Markup(curve.drawn(progress.NARROW)),  # noqa: S704
            }
            for curve in seen.curves
        ],
    }
