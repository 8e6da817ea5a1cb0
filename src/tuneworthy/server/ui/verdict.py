"""A run's verdict, its reasons and charts: the report's own sections in the page's frame."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from tuneworthy.report import html
from tuneworthy.server import promotion
from tuneworthy.server.ui.records import Signature, records, signature
from tuneworthy.server.ui.site import Site
from tuneworthy.store import RunFolder

SHOWN = (
    *("verdict", "arms", "differences", "cost", "learning", "diagnosis", "forecast", "debt"),
    *("rules", "noise", "spent", "wins", "chosen", "settings", "again"),
)
"""Rows and data have pages of their own."""


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/p/{task}/runs/{name}")
    def verdict(request: Request, task: str, name: str) -> Response:
        project = site.project(task)
        run = site.run(project, name)
        parts = sections(run.path, signature(run), f"/p/{project.task}/runs/{name}/rows")
        return site.page(
            request,
            "verdict.html",
            project=project,
            run=run.path.name,
            # Made by the report's template, which escapes all that stands in rows.
            parts=[Markup(parts[part]) for part in SHOWN if parts[part]],  # noqa: S704
            **_serving(project.folder, records(run).decision),
        )

    @routes.get("/p/{task}/runs/{name}/report.html")
    def report(task: str, name: str) -> Response:
        run = site.run(site.project(task), name)
        # The file's policy allows its own script by hash, and nothing else.
        headers = {"content-security-policy": "frame-ancestors 'none'"}
        if run.decision.exists() and run.report.exists():
            return HTMLResponse(run.report.read_bytes(), headers=headers)
        return HTMLResponse(html.render(run), headers=headers)


def _serving(folder: Path, decision: dict[str, Any] | None) -> dict[str, Any]:
    """Whether the arm that was decided on answers already."""
    decided = decision["arm"] if decision else None
    return {"answering": promotion.answering(folder), "decided": decided}


@lru_cache(maxsize=16)
def sections(run: Path, _: Signature, rows_at: str) -> dict[str, str]:
    """Drawn once for what the run folder holds now."""
    return html.sections(records(RunFolder(run)), rows_at)
