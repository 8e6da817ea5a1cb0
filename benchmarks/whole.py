"""`tuneworthy train lora` on 6,000 phpdoc rows as a user runs it, what `plan` had said, and a score.

Each command is a process of its own, from nothing in memory to the adapter on the disk; what is
reported is the clock on the wall. See docs/guides/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common
from _common import OFFLINE, ContenderFailed, workspace
from _workloads import ASK, BASE, open_rows

from tuneworthy import store

ROWS, QUICK_ROWS, EPOCHS = 6_000, 200, 1
DEV_ROWS, TEST_ROWS = 200, 200
ARM = "lora"
PACKAGES = ("tuneworthy", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Command:
    """What a command printed as JSON, and what it took: seconds on the wall, bytes at its peak."""

    said: dict[str, Any]
    seconds: float
    bytes: int


def write_project(folder: Path, rows: Sequence[dict[str, str]], train: int, base: str) -> None:
    """A project of one epoch on so many rows, with nothing of an earlier run in it."""
    if folder.exists():
        store.remove(folder)
    store.write_jsonl(folder / "examples.jsonl", rows)
    settings = {
        "task": "phpdoc-whole",
        "instruction": ASK,
        "base": base,
        "data": {
            "examples": "examples.jsonl",
            "group_by": "file",
            "train": train,
            "dev": DEV_ROWS,
            "test": TEST_ROWS,
        },
        "metric": "chrf",
        "arms": [ARM],
        "lora": {"epochs": EPOCHS},
        "budget": "none",
    }
    store.write_text(folder / "tuneworthy.yaml", json.dumps(settings, indent=2))


def ran(*words: str) -> Command:
    """A command of ours in a process of its own; what it says on stderr is passed on.

    Raises ContenderFailed if it does not end well.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneworthy", *words, "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, **OFFLINE},
    )
    assert process.stdout
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ContenderFailed(f"ended with code {process.returncode}", where=" ".join(words))
    return Command(json.loads(said), time.monotonic() - began, used.ru_maxrss * 1024)


def measured(folder: Path) -> tuple[dict[str, Any], str]:
    """`plan`, `train` and `eval`: the figures and tables of them."""
    planned = ran("plan", str(folder))
    [estimate] = (arm for arm in planned.said["arms"] if arm["arm"] == ARM)
    trained = ran("train", ARM, str(folder))
    evaluated = ran("eval", ARM, str(folder))
    [run] = store.runs(folder)
    answering = store.read_json(run.measured(ARM))["seconds"]
    record = trained.said
    training = record["training"]
    pieces = {
        "training, evaluations included": training["seconds"],
        "choosing the learning rate": record["seconds"] - training["seconds"],
        "all else: starting, reading and splitting rows": trained.seconds - record["seconds"],
    }
    to_train = estimate["training_seconds_estimate"]
    foreseen = {
        "seconds of training, learning rate included": (to_train, record["seconds"]),
        f"seconds to answer {evaluated.said['n']} rows": (
            estimate["seconds_estimate"] - to_train,
            answering,
        ),
        "peak memory, MB": (estimate["memory_bytes_estimate"] / 2**20, trained.bytes / 2**20),
    }
    found = _common.workload(
        training["tokens"] / trained.seconds,
        {},
        "tokens/s, the whole command",
        rows=training["rows"],
        tokens=training["tokens"],
        steps=training["steps"],
        seconds=trained.seconds,
        pieces=pieces,
        number_format=training["how"].get("format"),
        score=evaluated.said["score"],
        dev_losses=[training["dev_loss_before"], training["dev_loss"]],
        plan_seconds=planned.seconds,
        foreseen_and_taken=foreseen,
    )
    whole = {"the whole command": trained.seconds, **pieces}
    took = [
        [what, f"{seconds:.0f}", f"{training['tokens'] / max(seconds, 1e-3):.0f}" if i < 2 else ""]
        for i, (what, seconds) in enumerate(whole.items())
    ]
    title = (
        f"whole: tuneworthy train {ARM}, {training['rows']:,} rows, {training['tokens']:,} tokens, "
        f"{training['steps']} steps; dev loss {training['dev_loss_before']:.3f} before and "
        f"{training['dev_loss']:.3f} after, {evaluated.said['score']:.3f} on {evaluated.said['n']} sealed rows"
    )
    compared = [
        [what, f"{before:.0f}", f"{after:.0f}", f"{before / max(after, 1e-3):.0%}"]
        for what, (before, after) in foreseen.items()
    ]
    tables = [
        _common.show(title, ["what", "seconds", "tokens/s"], took),
        _common.show(
            f"what tuneworthy plan had said, in {planned.seconds:.0f} s",
            ["what", "foreseen", "taken", "of it"],
            compared,
        ),
    ]
    return found, "\n".join(tables)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 rows, to see that it works")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    with _common.ending():
        rows, _ = open_rows(lambda text: print(text, file=sys.stderr))
        folder = workspace() / "whole"
        write_project(folder, rows.in_files, QUICK_ROWS if options.quick else ROWS, BASE)
        _common.wake_memory()
        found, tables = measured(folder)
        if options.quick:
            print("no full measurement: nothing is recorded", file=sys.stderr)
        else:
            _common.record("whole", {"phpdoc": found}, [tables], _common.versions(PACKAGES))


if __name__ == "__main__":
    main()
