"""`report --verify`: whether a run is what it says: hashes, scores and verdict, all over again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.data.seal import content, sha256_rows
from tuneworthy.engine.models import rehash
from tuneworthy.errors import MetricError, StorageError, TuneworthyError
from tuneworthy.evaluation import metrics
from tuneworthy.store import RunFolder
from tuneworthy.workflows import concluding, spending
from tuneworthy.workflows.provenance import LASTING

_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `wrong` has a sentence for each thing found. None: not looked at."""

    what: str
    wrong: tuple[str, ...] | None
    note: str = ""

    @property
    def state(self) -> str:
        return "not checked" if self.wrong is None else "wrong" if self.wrong else "ok"


Say = Callable[[str], None]


def verify(folder: RunFolder, project: Project, say: Say = lambda text: None) -> list[Check]:
    """Every check of a finished run; nothing is written and no model is loaded.

    Raises StorageError for a run without a manifest: it was not finished.
    """
    if not folder.manifest.exists():
        raise StorageError(
            "no manifest: this run is not finished, or an older version made it",
            where=str(folder.path),
            hint="tuneworthy decide finishes it",
        )
    checks = []
    for what, look in (
        ("files", _files),
        ("rows and seal", _rows),
        ("scores", _scores),
        ("weights", _weights),
        ("base", _base),
        ("verdict", _verdict),
        ("comparison", _comparison),
    ):
        say(f"checking {what}")
        try:
            checks.append(look(folder, project))
        except (TuneworthyError, KeyError, TypeError, ValueError) as error:
            # A broken file breaks more than one check: each says so for itself.
            said = (
                str(error) if isinstance(error, TuneworthyError) else f"cannot be read: {error!r}"
            )
            checks.append(Check(what, (said,)))
    return checks


def _files(folder: RunFolder, project: Project) -> Check:
    """Against the hashes that were written when the run was finished."""
    manifest = store.read_json(folder.manifest)["files"]
    wrong = []
    for name, sha256 in manifest.items():
        path = folder.path / name
        if not path.exists():
            wrong.append(f"{name} is missing")
        elif store.sha256_file(path) != sha256:
            wrong.append(f"{name} was changed: its hash is not the one in manifest.json")
    listed = {name.split("/")[1] for name in manifest if name.startswith("arms/")}
    wrong += [
        f"arms/{name} is not in manifest.json"
        for name in folder.arms
        if name not in listed and concluding.is_measured(folder, name)
    ]
    wrong += [f"{name} is not in manifest.json" for name in LASTING if name not in manifest]
    return Check("files", tuple(wrong), f"{len(manifest):,} files")


def _rows(folder: RunFolder, project: Project) -> Check:
    """Rows against their own ids, the hash of the data, and the seal."""
    rows, wrong = ledger.read_rows_file(folder.rows), []
    hashes = []
    for name, part in rows.items():
        for row in part:
            sha256 = store.sha256_json(content(row))
            hashes.append([name, sha256])
            if row.id != f"r{sha256[:12]}":
                wrong.append(f"rows.jsonl: the {name} row from {row.source} was changed")
    if store.sha256_json(sorted(hashes)) != store.read_json(folder.config)["data"]["sha256"]:
        wrong.append("rows.jsonl: the rows are not those of data.sha256 in config.json")
    if sha256_rows(rows.test) != store.read_json(folder.seal)["sha256"]:
        wrong.append("rows.jsonl: the test rows are not those that were sealed")
    return Check("rows and seal", tuple(wrong), f"{len(hashes):,} rows")


def _scores(folder: RunFolder, project: Project) -> Check:
    """Every stored answer scored again, and every test row answered once."""
    rows = ledger.read_rows_file(folder.rows)
    seen = [row.completion for row in (*rows.train, *rows.dev)]
    try:
        metric = metrics.resolve(project.metric, seen, project.folder)
    except MetricError as error:
        return Check("scores", None, f"the metric cannot be had: {error}")
    wanted = {row.id: row.completion for row in rows.test}
    wrong, count = [], 0
    for name in _places(folder):
        records = {r["id"]: r for r in store.read_jsonl(folder.predictions(name))}
        if records.keys() != wanted.keys():
            wrong.append(f"arms/{name}: the predictions are not of the {len(wanted)} test rows")
        for id_, record in records.items():
            if record["failure"] is not None or id_ not in wanted:
                continue
            count += 1
            again = metric.score(record["text"], wanted[id_]).value
            if abs(again - record["score"]) > _TINY:
                wrong.append(
                    f"arms/{name}: row {id_} has the score {record['score']:g}, "
                    f"its answer earns {again:g}"
                )
    return Check("scores", tuple(wrong), f"{count:,} answers scored again")


def _places(folder: RunFolder) -> Iterator[str]:
    for name in filter(lambda n: concluding.is_measured(folder, n), folder.arms):
        yield name
        yield from (s for s in spending.seeds(folder, name) if concluding.is_measured(folder, s))


def _weights(folder: RunFolder, project: Project) -> Check:
    """Trained weights carry the hash of the base they belong to."""
    base, wrong, count = store.read_json(folder.config)["base"]["sha256"], [], 0
    for name in _places(folder):
        if not ARMS[name.partition("/")[0]].trained:
            continue
        count += 1
        for label in ("tuneworthy.json", "memory.json"):  # of weights, and of the fake base's
            path = folder.model(name) / label
            if path.exists() and store.read_json(path)["base_sha256"] != base:
                wrong.append(f"arms/{name}/model belongs to another base")
        if not folder.model(name).is_dir():
            wrong.append(f"arms/{name}/model is missing")
    return Check("weights", tuple(wrong), f"{count} trained arms")


def _base(folder: RunFolder, project: Project) -> Check:
    """The base's own files, where they are on this machine."""
    base = store.read_json(folder.config)["base"]
    found = rehash(base["name"], project.folder)
    if found is None:
        return Check("base", None, f"the files of {base['name']} are not on this machine")
    wrong = [] if found == base["sha256"] else [f"{base['name']} is not the base of this run"]
    return Check("base", tuple(wrong), f"{base['name']} {base['sha256'][:12]}…")


def _verdict(folder: RunFolder, project: Project) -> Check:
    """The decision again, from the stored predictions."""
    if not folder.decision.exists():
        return Check("verdict", None, "there is none yet")
    stored, again = store.read_json(folder.decision), concluding.derive(folder, project)
    wrong = [f"decision.json: {text}" for text in differences(stored, again)]
    return Check("verdict", tuple(wrong), f"{again['verdict']} {again['arm'] or ''}".strip())


def _comparison(folder: RunFolder, project: Project) -> Check:
    """Of a retune: old against new again, where the old run is still there."""
    from tuneworthy.workflows import retuning

    if not folder.retune.exists():
        return Check("comparison", None, "not a retune")
    stored = store.read_json(folder.retune)
    old = retuning.parent_of(folder, project)
    if old is None:
        return Check("comparison", None, f"the earlier run {stored['parent']['run']} is not here")
    again = retuning.record(old, folder, project, stored["gate"] and stored["gate"]["text"])
    wrong = [f"retune.json: {text}" for text in differences(stored, again)]
    return Check("comparison", tuple(wrong), f"with {stored['parent']['run']}")


def differences(stored: Any, again: Any, place: str = "") -> list[str]:
    """Where two JSON values differ, by dotted name; numbers may differ in the last digits."""
    if isinstance(stored, dict) and isinstance(again, dict):
        found = []
        for key in sorted({*stored, *again}):
            inner = f"{place}.{key}" if place else str(key)
            if key not in stored or key not in again:
                found.append(f"{inner} is in one of the two only")
            else:
                found += differences(stored[key], again[key], inner)
        return found
    if isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        pairs = enumerate(zip(stored, again), 1)
        return [text for n, (a, b) in pairs for text in differences(a, b, f"{place}[{n}]")]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (stored, again))
    same = abs(stored - again) <= _TINY * max(1, abs(stored)) if numbers else stored == again
    return [] if same else [f"{place} says {_short(stored)}, the stored files say {_short(again)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
