"""One decision about one project, and arms measured beside it; told what by a job, see `_common`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneworthy import decide, evaluate, load

TOLD = {
    "measured": "{arm} scores {score:.3f}",
    "skipped": "{arm} is not measured: {reason}",
    "note": "{text}",
}
"""Kinds of events that are passed on, and how."""


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def hear(event: dict[str, Any]) -> None:
    """Pass on what a reader wants to know; of the rest, that something happened.

    Who started this process may be gone: then telling fails, and so it ends.
    """
    said = event["kind"] in TOLD and event.get("score", 0.0) is not None
    tell({"said": TOLD[event["kind"]].format(**event)} if said else {})


def decided(folder: str, settings: Mapping[str, Any], also: Sequence[str], listener: Any) -> Path:
    """Decide, then measure other arms in the same run; its folder."""
    project = load(folder, **{name.replace(".", "__"): value for name, value in settings.items()})
    run = decide(project, listener=listener).folder
    for arm in also:
        found = evaluate(project, arm, listener=listener)
        if found.folder.parents[1] != run:
            raise SystemExit(f"{arm} was measured in {found.folder}, and not in {run}")
    return run


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    tell({"done": {"run": str(decided(**job, listener=hear))}})


if __name__ == "__main__":
    main()
