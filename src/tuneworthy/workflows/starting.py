"""`init`: a project file from rows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from tuneworthy import store
from tuneworthy.config import PROJECT_FILE, DataSettings, Project
from tuneworthy.data.formats import read_rows
from tuneworthy.errors import DataError, ProjectError
from tuneworthy.evaluation import metrics


def init(examples: Path, documents: Path | None = None, *, force: bool = False) -> Path:
    """Write `tuneworthy.yaml` beside the rows; its path.

    Raises DataError if the rows cannot be read, ProjectError if a project file is there already.
    """
    folder = examples.parent
    file = folder / PROJECT_FILE
    if file.exists() and not force:
        raise ProjectError("is there already", where=str(file), hint="tuneworthy init --force …")
    if documents is not None and not documents.exists():
        raise DataError(
            "no such file or folder", where=str(documents), hint=f"ls {documents.parent}"
        )
    task = re.sub(r"[^A-Za-z0-9]+", "-", examples.stem).strip("-") or "task"
    if task in ("examples", "data", "train", "rows"):
        task = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-") or task
    data = DataSettings(examples=examples.name)
    rows = read_rows(Project(task=task, data=data, folder=folder))
    completions = [row.completion for row in rows if row.completion]
    metric = metrics.resolve("auto", completions, folder)
    where = (
        f"\n  documents: {_quoted(os.path.relpath(documents, folder))}   # for the rag arm"
        if documents
        else ""
    )
    store.write_text(
        file,
        f"""# {len(rows):,} rows. Every key: docs/reference/project-file.md
task: {task}
# instruction: One or two sentences that say what to do.
base: smollm2-135m-instruct
data:
  examples: {_quoted(examples.name)}{where}
metric: {metric.name}   # {metric.why}
margin: 0.02            # how much score you would give up for the cheaper arm
budget: 30m             # wall-clock limit for decide
requests_per_month: 100000
""",
    )
    return file


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_flow_style=True).splitlines()[0]
