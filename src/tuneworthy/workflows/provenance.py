"""What a run was made of, and the hashes of what it left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.store import RunFolder

LASTING = ("rows.jsonl", "ledger.jsonl", "checks.json")
"""Files of the run itself that nothing changes once they are written."""
CHANGING = (
    *("config.json", "seal.json", "diagnosis.json", "probe.json"),
    *("decision.json", "retune.json"),
)
"""Files that a run taken up again writes anew."""
_PASSING = (".checkpoint", ".part", ".old")
"""Ends of names of what a training under way keeps beside its weights."""


def provenance(folder: RunFolder) -> dict[str, Any]:
    """Base, data, recipes, packages and machine: what goes into a decision and with every export."""
    config = store.read_json(folder.config)
    base = config["base"]
    return {
        "run": folder.path.name,
        "parent": config.get("parent"),
        "base": {key: base[key] for key in ("name", "sha256", "licence", "parameters")},
        "data": {**config["data"], "test_sha256": store.read_json(folder.seal)["sha256"]},
        "recipes": {
            name: recipe(folder, name) for name in folder.arms if folder.fit(name).exists()
        },
        "packages": {"tuneworthy": config["tuneworthy"], **config["packages"]},
        "machine": config["machine"],
    }


def recipe(folder: RunFolder, arm: str) -> dict[str, Any]:
    """What makes an arm again: what stands in its prompts, and every number of its training."""
    fit = store.read_json(folder.fit(arm))
    return {
        "recipe": fit["recipe"],
        "chosen": fit["chosen"],
        "training": fit["training"] and fit["training"]["settings"],
    }


def write_manifest(folder: RunFolder) -> None:
    """Hash what the run holds into `manifest.json`: the last thing that a verb does with a run.

    What an earlier manifest says of rows, and of arms that have not been measured again since,
    stays as it is: a file that was changed meanwhile is not made good by running again.
    """
    before = _known(folder)
    files: dict[str, str] = {}
    for path in _files(folder):
        name = path.relative_to(folder.path).as_posix()
        if name in before and (name in LASTING or _same_arm(folder, name, before)):
            files[name] = before[name]
        else:
            files[name] = store.sha256_file(path)
    # What vanished from an arm that was not measured again is missing, and stays on the list.
    for name, sha256 in before.items():
        if name in LASTING or (name.startswith("arms/") and _same_arm(folder, name, before)):
            files.setdefault(name, sha256)
    store.write_json(
        folder.manifest,
        {"version": 1, "run": folder.path.name, "files": dict(sorted(files.items()))},
    )


def refresh(folder: RunFolder, *names: str) -> None:
    """The manifest with new hashes of files that follow from the others, if there is one."""
    if not folder.manifest.exists():
        return
    manifest = store.read_json(folder.manifest)
    manifest["files"] |= {n: store.sha256_file(folder.path / n) for n in names}
    store.write_json(folder.manifest, manifest)


def _known(folder: RunFolder) -> dict[str, str]:
    if not folder.manifest.exists():
        return {}
    known: dict[str, str] = store.read_json(folder.manifest)["files"]
    return known


def _same_arm(folder: RunFolder, name: str, before: dict[str, str]) -> bool:
    """Whether a file belongs to an arm that was measured before and has not been since."""
    place = _place(name)
    measured = f"{place}/measured.json"
    path = folder.path / measured
    return measured in before and path.exists() and store.sha256_file(path) == before[measured]


def _place(name: str) -> str:
    """`arms/<arm>`, or `arms/<arm>/seeds/<number>`."""
    parts = name.split("/")
    return "/".join(parts[:4] if parts[2:3] == ["seeds"] else parts[:2])


def _files(folder: RunFolder) -> Iterator[Path]:
    """All that a verdict rests on, and the verdict; the reports follow from it."""
    for name in (*LASTING, *CHANGING):
        if (folder.path / name).exists():
            yield folder.path / name
    arms = folder.path / "arms"
    for path in sorted(arms.rglob("*")) if arms.is_dir() else ():
        inside = path.relative_to(arms).parts
        passing = any(part.startswith(".") or part.endswith(_PASSING) for part in inside)
        if path.is_file() and not passing:
            yield path
