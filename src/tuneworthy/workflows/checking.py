"""`check`: every row read and accounted for, nothing written."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from tuneworthy.arms.grammar import given_grammar
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.formats import read_rows
from tuneworthy.engine import open_engine
from tuneworthy.evaluation import metrics
from tuneworthy.retrieval.load import load_documents
from tuneworthy.workflows.session import Listener, check_pair


def check(
    project: Project, *, tokens: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Counts, findings and the ledger of a project's rows.

    With `tokens` the base model is loaded and rows are checked against its context and its chat
    template too. Raises DataError where rows cannot be used at all.
    """
    say = lambda text: listener({"kind": "note", "text": text}) if listener else None  # noqa: E731
    read_rows(project)
    given_grammar(project)
    documents = project.data.documents
    found = load_documents(project.folder / documents) if documents else []
    engine = None
    if tokens:
        engine = open_engine(
            project.base, project.folder, say, project.engine, project.endpoint, project.prices
        )
    prepared = ledger.prepare(
        project,
        (lambda e: engine.count(e.prompt, e.completion)) if engine else None,
        engine.base.context_length if engine else None,
    )
    rows = prepared.rows
    kept = [*rows.train, *rows.dev, *rows.test]
    if engine:
        for example in kept:
            check_pair(engine, example)
    metric = metrics.resolve(project.metric, [e.completion for e in kept], project.folder)
    dropped = Counter(record["dropped"] for record in prepared.ledger if record["dropped"])
    return {
        "task": project.task,
        "rows": {
            "read": len(prepared.ledger),
            "train": len(rows.train),
            "dev": len(rows.dev),
            "test": len(rows.test),
            **({"documents": len(found)} if documents else {}),
            **{f"dropped: {reason}": count for reason, count in sorted(dropped.items())},
        },
        "metric": {"name": metric.name, "why": metric.why},
        "findings": [asdict(finding) for finding in prepared.findings],
        "ledger": prepared.ledger,
    }
