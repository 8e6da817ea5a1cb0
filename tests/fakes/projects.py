"""Projects on the fake base: rows with a structure that it can learn, in milliseconds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOMS = "kitchen hall attic cellar garage office nursery porch den studio loft pantry".split()
THINGS = "lamp fan heater blind kettle radio oven speaker curtain sprinkler dryer pump".split()
DEEDS = "start stop raise lower check mute open shut test reset".split()


def rows(count: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct commands whose JSON names their words: a nearest neighbour gets most fields right."""
    every = [(d, t, r) for d in DEEDS for t in THINGS for r in ROOMS]
    random.Random(seed).shuffle(every)
    return [
        {
            "prompt": f"{deed} the {thing} in the {room}",
            "completion": json.dumps({"deed": deed, "thing": thing, "room": room}),
            "kind": f"{deed}-{thing}",
        }
        for deed, thing, room in every[:count]
    ]


def write(folder: Path, examples: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """A project folder: examples.jsonl and tuneworthy.yaml; `data__test=40` sets data.test."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in examples]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    values: dict[str, Any] = {
        "task": "commands",
        "base": "fake",
        "data": {"examples": "examples.jsonl", "test": 60, "dev": 30},
        "few_shot": {"k": 4},
        "budget": "none",
    }
    for name, value in settings.items():
        level = values
        *parents, last = name.split("__")
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    (folder / "tuneworthy.yaml").write_text(json.dumps(values), "utf-8")  # JSON is YAML
    return folder
