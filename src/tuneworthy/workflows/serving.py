"""A finished run, opened for answering: the base, the recipes' kitchen, and each arm as it was fitted.

No seal is opened and nothing is split again: rows.jsonl and fit.json say all that an arm needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Fitted, Kitchen, Task
from tuneworthy.arms.recipe import grammar_from_json
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.engine import open_embedder, open_engine
from tuneworthy.errors import StorageError
from tuneworthy.evaluation import metrics
from tuneworthy.retrieval.chunk import chunk
from tuneworthy.retrieval.index import Index
from tuneworthy.retrieval.load import load_documents
from tuneworthy.store import RunFolder
from tuneworthy.types import Decoding, Embedder, Engine
from tuneworthy.workflows.concluding import project_of

Say = Callable[[str], None]


def open_base(folder: RunFolder, say: Say) -> Engine:
    """The base model that a run was measured on. Raises StorageError if it is another one now."""
    project, config = project_of(folder), store.read_json(folder.config)
    engine = open_engine(
        project.base, project.folder, say, project.engine, project.endpoint, project.prices
    )
    if engine.base.sha256 != config["base"]["sha256"]:
        raise StorageError(
            f"'{project.base}' is another model than this run was measured on",
            where=str(folder.path),
            hint="tuneworthy decide measures the new one",
        )
    return engine


@dataclass(frozen=True)
class Serving:
    """One run with its base loaded; arms are restored when they are first asked for."""

    folder: RunFolder
    engine: Engine
    say: Say

    @cached_property
    def project(self) -> Project:
        return project_of(self.folder)

    @cached_property
    def _embedder(self) -> Embedder:
        return open_embedder(self.project.base, self.say)

    @cached_property
    def _index(self) -> Index:
        documents = load_documents(self.project.folder / str(self.project.data.documents))
        passages = chunk(tuple(documents))
        return Index.build(passages, self._embedder, self.project.folder / "runs" / ".index")

    @cached_property
    def _task(self) -> Task:
        rows = ledger.read_rows_file(self.folder.rows)
        config = store.read_json(self.folder.config)
        seen = [example.completion for example in (*rows.train, *rows.dev)]
        limit = config["settings"]["decoding.max_tokens"]["value"]
        return Task(
            project=self.project,
            kitchen=Kitchen(
                engine=self.engine,
                decoding=Decoding(max_tokens=limit),
                train=rows.train,
                embedder=lambda: self._embedder,
                search=(lambda: self._index) if self.project.data.documents else None,
            ),
            train=rows.train,
            dev=rows.dev,
            metric=metrics.resolve(self.project.metric, seen, self.project.folder),
            folder=self.folder.path,
            report=lambda kind, fields: None,
        )

    def arm(self, name: str) -> Fitted:
        """The arm as it was measured, its run's decoding included."""
        record: dict[str, Any] = store.read_json(self.folder.fit(name))
        task = replace(self._task, folder=self.folder.arm(name))
        if record.get("grammar") and self.project.grammar.holds(name):
            held = replace(task.kitchen.decoding, grammar=grammar_from_json(record["grammar"]))
            task = replace(task, kitchen=replace(task.kitchen, decoding=held))
        return ARMS[name].restore(task, record)


def measured_arms(folder: RunFolder) -> list[str]:
    """Arms that were measured to the end, in the order of the table."""
    return [
        name
        for name in ARMS
        if folder.measured(name).exists() and store.read_json(folder.measured(name))["complete"]
    ]
