"""Projects and rows for the tests of this part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuneworthy.config import Project
from tuneworthy.types import Example, Message


def project(folder: Path, **data: Any) -> Project:
    return Project(task="t", data={"examples": "rows.jsonl", **data}, folder=folder)


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(number: int) -> dict[str, str]:
    """A row that resembles no other."""
    return {"prompt": words(number), "completion": f"answer {number}"}


def words(number: int) -> str:
    return " ".join(f"{number * 7919 + k * 104729:x}" for k in range(6))


def example(number: int, prompt: str | None = None, group: str | None = None) -> Example:
    text = words(number) if prompt is None else prompt
    return Example(
        id=f"r{number:012x}",
        prompt=(Message("user", text),),
        completion=f"answer {number}",
        source=f"rows.jsonl:{number + 1}",
        group=group,
    )
