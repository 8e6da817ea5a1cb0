"""Prompts and answers as they came, with what people said of them; off unless asked for.

One file a day in `<project>/traffic/`, older ones removed. What looks like a secret is never
written. Answers that were praised or corrected are rows that the next `decide` can use.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.data.checks import redacted
from tuneworthy.types import Prompt

DAYS = 30
_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl")


class Traffic:
    """The log of a server; `days` is how long a file is kept."""

    def __init__(self, days: int = DAYS) -> None:
        self.days = days
        self._lock = threading.Lock()

    def record(
        self, project: Path, id_: str, model: str, arm: str, prompt: Prompt, text: str
    ) -> None:
        messages = [{"role": m.role, "content": redacted(m.content)} for m in prompt]
        line = {
            "time": store.now(),
            "id": id_,
            "model": model,
            "arm": arm,
            "messages": messages,
            "answer": redacted(text),
        }
        self._append(project, line)

    def shadow(self, project: Path, id_: str, arm: str, text: str) -> None:
        """What a shadow arm would have answered to a request."""
        self._append(
            project, {"time": store.now(), "id": id_, "shadow": arm, "answer": redacted(text)}
        )

    def feedback(self, project: Path, id_: str, thumbs: str | None, corrected: str | None) -> bool:
        """Keep what somebody said of an answer; False if no such answer was logged."""
        if not any(line.get("id") == id_ and "messages" in line for line in lines(project)):
            return False
        said = {"thumbs": thumbs, "corrected": None if corrected is None else redacted(corrected)}
        self._append(project, {"time": store.now(), "id": id_, **said})
        return True

    def _append(self, project: Path, line: dict[str, Any]) -> None:
        folder, today = project / "traffic", datetime.now(UTC).date()
        with self._lock:
            store.append_jsonl(folder / f"{today.isoformat()}.jsonl", [line])
            oldest = (today - timedelta(days=self.days)).isoformat()
            for path in folder.iterdir():
                day = _DAY.fullmatch(path.name)
                if day and day[1] < oldest:
                    path.unlink(missing_ok=True)


def lines(project: Path) -> Iterator[dict[str, Any]]:
    """Everything that was logged, oldest first."""
    folder = project / "traffic"
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        yield from store.read_jsonl(path)


def rows(project: Path) -> list[dict[str, Any]]:
    """Rows of what was praised as it stands, or corrected; the last word on an answer counts."""
    asked: dict[str, dict[str, Any]] = {}
    said: dict[str, dict[str, Any]] = {}
    for line in lines(project):
        if "messages" in line:
            asked[line["id"]] = line
        elif "thumbs" in line:
            said[line["id"]] = line
    found = []
    for id_, line in asked.items():
        word = said.get(id_)
        if word is None or (word["corrected"] is None and word["thumbs"] != "up"):
            continue
        answer = line["answer"] if word["corrected"] is None else word["corrected"]
        turn = {"role": "assistant", "content": answer}
        found.append({"messages": [*line["messages"], turn]})
    return found
