"""One decision about one project; told what to do by a job, see `_common`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tuneworthy import decide, load

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


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    settings = {name.replace(".", "__"): value for name, value in job["settings"].items()}
    decision = decide(load(job["folder"], **settings), listener=hear)
    tell({"done": {"run": str(decision.folder)}})


if __name__ == "__main__":
    main()
