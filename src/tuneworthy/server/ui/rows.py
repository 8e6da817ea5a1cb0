"""Every test row with all arms' answers side by side."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tuneworthy.report import html
from tuneworthy.report.reading import compared
from tuneworthy.server.ui.records import SHOWS, Answer, Table, records, table
from tuneworthy.server.ui.site import Site

PAGE = 20
"""Rows at a time."""
SNIPPET = 160


def add(routes: APIRouter, site: Site) -> None:
    @routes.get("/p/{task}/runs/{name}/rows")
    def rows(
        request: Request,
        task: str,
        name: str,
        a: str = "",
        b: str = "",
        show: str = "all",
        q: str = "",
        page: str = "1",
    ) -> Response:
        project = site.project(task)
        run = site.run(project, name)
        context = view(table(run), first_pair(run), a, b, show, q[:500], page)
        return site.page(request, "rows.html", project=project, run=run.path.name, **context)


def first_pair(run: Any) -> tuple[str, str]:
    """The arms that are compared until somebody chooses others: as in the report."""
    read = records(run)
    names = [arm.name for arm in read.arms if arm.predictions]
    if not names:
        return "", ""
    first, second = html.first_pair(read)
    return names[first], names[min(second, len(names) - 1)]


def view(
    rows: Table, pair: tuple[str, str], a: str, b: str, show: str, text: str, page: str
) -> dict[str, Any]:
    """What the template shows. Whatever is asked for that is not there becomes the default."""
    a, b = (x if x in rows.arms else y for x, y in zip((a, b), pair, strict=True))
    show = show if show in SHOWS else "all"
    if not rows.arms:
        return {"arms": [], "a": "", "b": "", "show": show, "q": text, "entries": []}
    found = rows.find(a, b, show, text)
    pages = max(1, -(-len(found.rows) // PAGE))
    at = min(max(int(page), 1), pages) if page.isdecimal() else 1
    asked = {"a": a, "b": b, "show": show, "q": text}
    shown = found.rows[(at - 1) * PAGE : at * PAGE]
    return {
        **asked,
        "arms": list(rows.arms),
        "shows": [(kind, said, found.counts[kind]) for kind, said in _labels(a, b)],
        "entries": [_entry(rows, position, a, b) for position in shown],
        "total": len(rows.rows),
        "matches": len(found.rows),
        "first": (at - 1) * PAGE + 1,
        "page": at,
        "pages": pages,
        "back": "?" + urlencode({**asked, "page": at - 1}) if at > 1 else None,
        "on": "?" + urlencode({**asked, "page": at + 1}) if at < pages else None,
    }


def _labels(a: str, b: str) -> list[tuple[str, str]]:
    said = ("All rows", f"{a} better", f"{b} better", "Answers differ", "Not parsed")
    return list(zip(SHOWS, (*said, "Machine failed"), strict=True))


def _entry(rows: Table, position: int, a: str, b: str) -> dict[str, Any]:
    """One row: what was asked, what was wanted, and the answers, the two that are compared first."""
    row = rows.rows[position]
    order = [a, *([b] if b != a else []), *(name for name in rows.arms if name not in (a, b))]
    last = row["messages"][-1]["content"] if row["messages"] else ""
    sign = compared(rows.answer(position, a), rows.answer(position, b)) if a != b else None
    return {
        "number": position + 1,
        "id": row["id"],
        "source": row["source"],
        "snippet": " ".join(last[:SNIPPET].split()),
        "prompt": [(m["role"], html.cut(m["content"], html.LONGEST_TEXT)) for m in row["messages"]],
        "wanted": html.cut(row["completion"], html.LONGEST_TEXT),
        "outcome": {1: f"{a} better", -1: f"{b} better", 0: "tie", None: ""}[sign],
        "answers": [_answer(name, rows.answer(position, name), a, b) for name in order],
    }


def _answer(name: str, answer: Answer, a: str, b: str) -> dict[str, Any]:
    role = "" if a == b else "A" if name == a else "B" if name == b else ""
    if answer is None:
        return {"arm": name, "role": role, "state": "no answer yet", "text": None, "note": ""}
    failure = answer["failure"]
    state = "machine failed"
    if failure is None:
        state = "not measurable" if answer["score"] is None else f"{answer['score']:.3f}"
        state += "" if answer["parsed"] else " · not parsed"
    cut_off = failure is None and answer["finish_reason"] == "length"
    return {
        "arm": name,
        "role": role,
        "state": state,
        "text": html.cut(answer["text"] if failure is None else failure, html.LONGEST_TEXT),
        "note": f"cut off at {answer['output_tokens']} tokens" if cut_off else "",
    }
