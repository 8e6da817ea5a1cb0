"""Data accounting: what became of every input row, and what looks wrong with the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from markupsafe import Markup

from tuneworthy.server.ui.records import records, signature
from tuneworthy.server.ui.site import Site
from tuneworthy.server.ui.verdict import sections

PAGE = 50
"""Ledger lines at a time."""


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/p/{task}/runs/{name}/data")
    def data(
        request: Request, task: str, name: str, what: str = "dropped", q: str = "", page: str = "1"
    ) -> Response:
        project = site.project(task)
        run = site.run(project, name)
        parts = sections(run.path, signature(run), f"/p/{project.task}/runs/{name}/rows")
        return site.page(
            request,
            "data.html",
            project=project,
            run=run.path.name,
            part=Markup(parts["data"]),  # noqa: S704  made by the report's template
            **view(records(run).ledger, what, q[:500], page),
        )


def view(ledger: Sequence[dict[str, Any]], what: str, text: str, page: str) -> dict[str, Any]:
    """Ledger lines of one kind (a split, a reason of being dropped, or all) that hold the words."""
    counts: Counter[str] = Counter()
    for line in ledger:
        counts["all"] += 1
        counts["dropped"] += bool(line["dropped"])
        counts["truncated"] += bool(line["truncated"])
        counts[line["dropped"] or line["split"] or "no split"] += 1
    kinds = ["all", "dropped", *sorted(set(counts) - {"all", "dropped", "truncated"}), "truncated"]
    # Where nothing was dropped, all rows are of more use than an empty list.
    what = what if what in kinds and (counts[what] or what != "dropped") else "all"
    words = text.casefold().split()
    found = [line for line in ledger if _of(line, what) and _holds(line, words)]
    pages = max(1, -(-len(found) // PAGE))
    at = min(max(int(page), 1), pages) if page.isdecimal() else 1
    asked = {"what": what, "q": text}
    return {
        **asked,
        "kinds": [(kind, counts[kind]) for kind in kinds if counts[kind] or kind == what],
        "lines": found[(at - 1) * PAGE : at * PAGE],
        "matches": len(found),
        "first": (at - 1) * PAGE + 1,
        "page": at,
        "pages": pages,
        "back": "?" + urlencode({**asked, "page": at - 1}) if at > 1 else None,
        "on": "?" + urlencode({**asked, "page": at + 1}) if at < pages else None,
    }


def _of(line: dict[str, Any], what: str) -> bool:
    if what in ("dropped", "truncated"):
        return bool(line[what])
    return what in ("all", line["dropped"] or line["split"] or "no split")


def _holds(line: dict[str, Any], words: Sequence[str]) -> bool:
    text = f"{line['source']} {line['reason'] or ''} {line['id']}".casefold()
    return all(word in text for word in words)
