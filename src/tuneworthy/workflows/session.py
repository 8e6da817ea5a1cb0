"""A run, opened: rows split and sealed, the base model loaded, the folder ready or found again."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from filelock import BaseFileLock

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm, Kitchen, Task
from tuneworthy.arms.grammar import given_grammar, grammar_of
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.formats import read_rows
from tuneworthy.data.seal import Seal, earlier_openings
from tuneworthy.data.split import Splits
from tuneworthy.engine import open_embedder, open_engine
from tuneworthy.errors import ChatTemplateError, ModelError, ProjectError
from tuneworthy.evaluation import metrics
from tuneworthy.retrieval.chunk import chunk
from tuneworthy.retrieval.index import Index
from tuneworthy.retrieval.load import Document, load_documents
from tuneworthy.store import Journal, RunFolder
from tuneworthy.types import Base, Decoding, Embedder, Engine, Example, Grammar, Metric
from tuneworthy.workflows import spending

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "llguidance",
    "numpy",
    "scipy",
    "lancedb",
    "datasets",
)
SHORTEST_ANSWER_TOKENS = 32
JUDGING_SETTINGS = (
    "arms",
    "budget",
    "endpoint.",
    "exhaustive",
    "likelihood",
    "margin",
    "parallel",
    "prices.",
    "requests_per_month",
)
"""They say how far to go and how to judge, not what an arm does: a run goes on under others."""
Listener = Callable[[dict[str, Any]], None]


@dataclass
class Session:
    """Everything a workflow needs; made by `open_session`. Leaving it lets other processes in."""

    project: Project
    folder: RunFolder
    engine: Engine
    rows: Splits
    metric: Metric
    decoding: Decoding
    journal: Journal
    seal: Seal
    lock: BaseFileLock
    resumed: bool
    documents: Sequence[Document] = ()
    started: float = field(default_factory=time.monotonic)
    spent_before: float = 0.0
    """Seconds that earlier processes of the same run worked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` at which the project's budget is used up."""
        if self.project.budget is None:
            return None
        return self.started + self.project.budget - self.spent_before

    def say(self, text: str) -> None:
        self.journal("note", {"text": text})

    @cached_property
    def _embedder(self) -> Embedder:
        return open_embedder(self.project.base, self.say)

    @cached_property
    def _index(self) -> Index:
        passages = chunk(self.documents)
        self.say(f"{len(self.documents):,} documents, {len(passages):,} passages")
        # Of the project, not of the run: the next run finds it ready.
        return Index.build(passages, self._embedder, self.project.folder / "runs" / ".index")

    @cached_property
    def _reflector(self) -> Engine:
        project = self.project
        named, folder = str(project.system_prompt.reflect), project.folder
        return open_engine(named, folder, self.say, "auto", project.endpoint, project.prices)

    @cached_property
    def kitchen(self) -> Kitchen:
        return Kitchen(
            engine=self.engine,
            decoding=self.decoding,
            train=self.rows.train,
            embedder=lambda: self._embedder,
            search=(lambda: self._index) if self.documents else None,
            reflector=(lambda: self._reflector) if self.project.system_prompt.reflect else None,
        )

    @property
    def needs(self) -> str | None:
        """What the diagnosis says that the rows need; None before it."""
        path = self.folder.diagnosis
        return store.read_json(path)["needs"] if path.exists() else None

    def task(self, arm: str, deadline: float | None = None, *, seed: int | None = None) -> Task:
        """What an arm's fit may see: no test row. `arm` is where its files lie.

        `seed`: another one than the project's, for training again.
        """
        project = self.project
        if seed is not None:
            project = project.model_copy(update={"seed": seed})
        task = Task(
            project=project,
            kitchen=self.kitchen,
            train=self.rows.train,
            dev=self.rows.dev,
            metric=self.metric,
            folder=self.folder.arm(arm),
            report=self.journal,
            fitted={name: r for name in ARMS if (r := self.fit_record(name)) is not None},
            deadline=deadline,
            needs=self.needs,
        )
        if not self.project.grammar.holds(arm.partition("/")[0]):
            return task
        decoding = replace(self.decoding, grammar=task.grammar)
        return replace(task, kitchen=replace(self.kitchen, decoding=decoding))

    def fit_record(self, arm: str) -> dict[str, Any] | None:
        """An arm's fit.json, or None before it is fitted."""
        path = self.folder.fit(arm)
        return store.read_json(path) if path.exists() else None

    def asked_for(self) -> list[Arm]:
        """The arms of the project file, cheapest first; all of them for `auto`."""
        wanted = ARMS if self.project.arms == "auto" else self.project.arms
        return [arm for name, arm in ARMS.items() if name in wanted]


@dataclass(frozen=True)
class _Loaded:
    """What a session is made of, before anything is written."""

    engine: Engine
    prepared: ledger.Prepared
    documents: tuple[Document, ...]
    metric: Metric
    decoding: Decoding
    grammar: Grammar | None
    """The project's own."""
    settings: dict[str, dict[str, Any]]
    parent: RunFolder | None = None

    @property
    def digest(self) -> str:
        """Hash of all that the measurements depend on: settings, rows, base, documents, metric."""
        identity = {
            name: setting["value"]
            for name, setting in self.settings.items()
            if not name.startswith(JUDGING_SETTINGS)
        }
        # What the settings only name: another metric function or other documents are another run.
        contents = [
            self.prepared.sha256,
            self.engine.base.sha256,
            metrics.source_sha256(self.metric),
            [[document.id, document.text] for document in self.documents],
            self.grammar and self.grammar.source,
        ]
        if self.parent:
            contents.append(self.parent.path.name)
        return store.sha256_json([identity, contents])


def open_session(
    project: Project,
    *,
    listener: Listener | None = None,
    fresh: bool = False,
    parent: RunFolder | None = None,
) -> Session:
    """Read and check the rows, load the base model, and open a run folder.

    Takes up the newest run with the same settings, rows and base unless `fresh`. With a `parent`
    the rows and their splits are those of that run, whatever the files say now.
    Raises before anything is written if rows, settings or base cannot be used.
    """
    journal = Journal()
    if listener:
        journal.listeners.append(listener)
    loaded = _load(project, journal, parent)
    folder = None if fresh else _same(project, loaded.digest)
    resumed = folder is not None
    if folder is None:
        folder = _new(project, loaded)
    lock = store.hold(folder.path)
    if resumed:
        terms = {"settings": loaded.settings, "command": _command(project, parent)}
        store.write_json(folder.config, {**store.read_json(folder.config), **terms})
    journal.path = folder.events
    rows = loaded.prepared.rows
    findings = [asdict(finding) for finding in loaded.prepared.findings]
    journal(
        "run",
        {
            "folder": str(folder.path),
            "resumed": resumed,
            "base": loaded.engine.base.name,
            "metric": loaded.metric.name,
            "rows": {"train": len(rows.train), "dev": len(rows.dev), "test": len(rows.test)},
            "findings": [finding for finding in findings if finding["severity"] == "warning"],
        },
    )
    return Session(
        project=project,
        folder=folder,
        engine=loaded.engine,
        rows=rows,
        metric=loaded.metric,
        decoding=loaded.decoding,
        journal=journal,
        seal=Seal(folder.seal),
        lock=lock,
        resumed=resumed,
        documents=loaded.documents,
        spent_before=spending.seconds(folder) if resumed else 0.0,
    )


def _load(project: Project, journal: Journal, parent: RunFolder | None) -> _Loaded:
    def say(text: str) -> None:
        journal("note", {"text": text})

    # What is broken is said at once, before a model is fetched.
    if parent is None:
        read = f"{len(read_rows(project)):,} rows read"
    else:
        read = f"rows of {parent.path.name}"
    grammar = given_grammar(project)
    documents: tuple[Document, ...] = ()
    if project.data.documents:
        documents = tuple(load_documents(project.folder / project.data.documents))
    say(f"{read}; loading {project.base}")
    engine = open_engine(
        project.base, project.folder, say, project.engine, project.endpoint, project.prices
    )
    prepared = _prepared(project, engine, parent)
    rows = prepared.rows
    seen = (*rows.train, *rows.dev)
    _check_grammar(project, engine, seen)
    _check_likelihood(project, engine)
    metric = metrics.resolve(project.metric, [e.completion for e in seen], project.folder)
    decoding = Decoding(max_tokens=longest_answer(engine, seen))
    settings = _settings(project, engine.base, metric, decoding)
    return _Loaded(engine, prepared, documents, metric, decoding, grammar, settings, parent)


def _prepared(project: Project, engine: Engine, parent: RunFolder | None) -> ledger.Prepared:
    context = engine.base.context_length
    if parent is not None:
        if store.read_json(parent.config)["base"]["sha256"] == engine.base.sha256:
            raise ProjectError(
                f"{engine.base.name} is the base of {parent.path.name} already",
                where="--base",
                hint="tuneworthy retune --base ANOTHER; tuneworthy models lists the known ones",
            )
        return ledger.inherit(parent.rows, parent.ledger, lambda e: unfit(engine, e))
    prepared = ledger.prepare(project, lambda e: engine.count(e.prompt, e.completion), context)
    rows = prepared.rows
    for example in (*rows.train, *rows.dev, *rows.test):
        check_pair(engine, example)
    return prepared


def unfit(engine: Engine, example: Example) -> str | None:
    """Why a row cannot be trained on with this base; None if it can."""
    tokens, context = engine.count(example.prompt, example.completion), engine.base.context_length
    if tokens > context:
        return f"too long: {tokens:,} tokens, context {context:,}"
    try:
        engine.check_pair(example.prompt, example.completion)
    except ChatTemplateError as error:
        return error.what
    return None


def _check_grammar(project: Project, engine: Engine, seen: Sequence[Example]) -> None:
    """Raises ProjectError if the project asks for a grammar that there is not."""
    settings = project.grammar
    if not (settings.arms or settings.labels or settings.regex or settings.json_schema):
        return  # the arm `constrained` will see
    grammar = grammar_of(project, [example.completion for example in seen])
    if grammar is None:
        raise ProjectError(
            "the completions share no grammar",
            where="grammar.arms",
            hint="give one: grammar.labels, grammar.regex or grammar.json_schema",
        )
    if settings.arms and grammar.kind not in engine.grammars:
        raise ProjectError(
            f"{engine.base.name} cannot be held to a grammar of kind {grammar.kind}",
            where="grammar.arms",
            hint=f"kinds it knows: {', '.join(engine.grammars)}",
        )


def _check_likelihood(project: Project, engine: Engine) -> None:
    """Raises ProjectError if likelihoods are asked for of a base that does not tell them."""
    if not project.likelihood:
        return
    try:
        engine.score((), ())
    except ModelError as error:
        raise ProjectError(error.what, where="likelihood", hint="likelihood: no") from None


def _new(project: Project, loaded: _Loaded) -> RunFolder:
    """A new run folder with rows, ledger, findings, seal and settings, whole or not at all."""
    prepared = loaded.prepared

    def fill(new: RunFolder) -> None:
        ledger.write_rows(new.rows, prepared.rows)
        store.write_jsonl(new.ledger, prepared.ledger)
        findings = [asdict(finding) for finding in prepared.findings]
        store.write_json(new.checks, {"findings": findings})
        earlier = earlier_openings(project.folder, prepared.test_sha256)
        Seal.create(new.seal, prepared.rows.test, earlier)
        store.write_json(new.config, _config(project, loaded))

    return store.new_run(project.folder, project.task, loaded.digest, fill)


def check_pair(engine: Engine, example: Example) -> None:
    """Raises ChatTemplateError with the row's place."""
    try:
        engine.check_pair(example.prompt, example.completion)
    except ChatTemplateError as error:
        error.where = example.source
        raise


def longest_answer(engine: Engine, rows: Sequence[Example]) -> int:
    """Tokens that every arm may say: the 99th percentile of the completions, end included.

    At least 32: where references are a word or two, an arm that answers in a sentence is not cut
    off before it has said the word.
    """
    lengths = [engine.count(e.prompt, e.completion) - engine.count(e.prompt) for e in rows]
    return max(SHORTEST_ANSWER_TOKENS, int(np.ceil(np.percentile(lengths, 99))))


def _settings(
    project: Project, base: Base, metric: Metric, decoding: Decoding
) -> dict[str, dict[str, Any]]:
    """Every setting with its origin; what `auto` became is a detected one."""
    settings = project.resolved()
    detected = {
        "metric": metric.name,
        "decoding.max_tokens": decoding.max_tokens,
        "decoding.temperature": decoding.temperature,
        **{f"base.{key}": value for key, value in base.details.items() if key != "threads"},
    }
    for name, value in detected.items():
        if name in settings and settings[name]["value"] != "auto":
            continue
        # Reasons differ where the choice does not: measured speeds, what is installed.
        if not name.endswith("_why"):
            settings[name] = {"value": value, "origin": "detected"}
    return settings


def _config(project: Project, loaded: _Loaded) -> dict[str, Any]:
    base, metric, rows = loaded.engine.base, loaded.metric, loaded.prepared.rows
    return {
        "version": 1,
        "task": project.task,
        "digest": loaded.digest,
        "created": store.now(),
        "tuneworthy": metadata.version("tuneworthy"),
        "command": _command(project, loaded.parent),
        **({"parent": loaded.parent.path.name} if loaded.parent else {}),
        "settings": loaded.settings,
        "base": asdict(base),
        "metric": {
            "name": metric.name,
            "why": metric.why,
            "graded": metric.graded,
            "reads_references": metrics.reads_references(
                metric, [example.completion for example in rows.train]
            ),
        },
        "data": {
            "sha256": loaded.prepared.sha256,
            "rows": {"train": len(rows.train), "dev": len(rows.dev), "test": len(rows.test)},
        },
        "machine": machine(),
        "packages": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }


def _command(project: Project, parent: RunFolder | None) -> str:
    """What to type for the same run."""
    if parent is not None:
        words = ["tuneworthy", "retune", str(project.folder), "--base", project.base]
        return shlex.join([*words, "--run", str(parent.path)])
    words = ["tuneworthy", "decide", str(project.folder)]
    for name, value in sorted(project.overrides.items()):
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def machine() -> dict[str, Any]:
    """What this machine is, without anything that names its owner."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    """Its name, with the generation: virtual machines often tell no more than "AMD EPYC"."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
        if "model name" in told and "cpu family" in told:
            return f"{told['model name']} (family {told['cpu family']}, model {told['model']})"
    return platform.processor() or platform.machine()


def _same(project: Project, digest: str) -> RunFolder | None:
    """The newest run with the same settings, rows and base, finished or not."""
    for run in reversed(store.runs(project.folder)):
        if store.read_json(run.config)["digest"] == digest:
            return run
    return None
