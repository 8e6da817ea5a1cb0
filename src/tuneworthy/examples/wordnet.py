"""wordnet: a word and its meaning -> one of forty fields of meaning. Classification.

The fields are WordNet's own: which of them a plant, a feeling or a way of moving belongs to is
plain to a reader, but what they are called and where one ends must be learnt.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tuneworthy.registry import Deb, Say, fetch_debs
from tuneworthy.store import write_jsonl, write_text

FOLDER = "usr/share/wordnet/"
DEB = Deb(
    "wordnet-base",
    "1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    (f"{FOLDER}data.noun", f"{FOLDER}data.verb"),
)
ROWS = 1500
SEED = "wordnet 1"
MAX_WORDS = 3
MAX_GLOSS_CHARACTERS = 160
SIBLINGS = 2
"""Rows of one field below one more general concept."""

FIELDS = {
    f"{number:02}": f"{kind}.{name}"
    for kind, first, names in (
        (
            "noun",
            4,
            "act animal artifact attribute body cognition communication event feeling food group "
            "location motive object person phenomenon plant possession process quantity relation "
            "shape state substance time",
        ),
        (
            "verb",
            29,
            "body change cognition communication competition consumption contact creation emotion "
            "motion perception possession social stative weather",
        ),
    )
    for number, name in enumerate(names.split(), first)
}
"""Number of a lexicographer's file, as `lexnames(5WN)` lists them -> its name."""

README = """# wordnet

{rows} concepts, each with up to {words} words for it and its definition, and the field of meaning
that it belongs to: one of {fields} labels.

Source: `wordnet-base` {version} of Debian 12 (WordNet licence, Princeton University), files
`data.noun` and `data.verb`; a label is the name of the lexicographer's file that holds the
concept. Left out: adjectives and adverbs, which have hardly any fields, the few concepts at the
very top (`noun.Tops`), example sentences, and definitions of {characters} characters and more.

A field has rows in proportion to the square root of its size. `above` names the next more general
concept. Rows with one such concept never straddle a split: the species of one genus, say, are
defined in nearly the same words.
"""


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl and README.md into `folder`."""
    (root,) = fetch_debs([DEB], say)
    rows = sample(
        row
        for kind in ("noun", "verb")
        for row in concepts(kind, (root / FOLDER / f"data.{kind}").read_text("utf-8"))
    )
    fields = {row["completion"] for row in rows}
    say(f"took {len(rows)} concepts of {len(fields)} fields")
    text = README.format(
        rows=len(rows),
        fields=len(fields),
        version=DEB.version,
        words=MAX_WORDS,
        characters=MAX_GLOSS_CHARACTERS,
    )
    write_jsonl(folder / "examples.jsonl", rows)
    write_text(folder / "README.md", text)


def concepts(kind: str, data: str) -> Iterator[dict[str, str]]:
    """Rows of a data file, whose lines `wndb(5WN)` describes; `kind` is noun or verb."""
    for line in data.splitlines():
        if line.startswith(" "):
            continue  # the licence
        record, _, gloss = line.partition(" | ")
        offset, number, _, count, *rest = record.split(" ")
        words = rest[: 2 * int(count, 16) : 2]
        pointers = rest[2 * len(words) + 1 :]
        above = [p for p, symbol in zip(pointers[1:], pointers) if symbol in ("@", "@i")]
        definition = gloss.partition('; "')[0].strip(" ;")
        if number not in FIELDS or not definition or len(definition) >= MAX_GLOSS_CHARACTERS:
            continue
        names = ", ".join(word.replace("_", " ") for word in words[:MAX_WORDS])
        yield {
            "prompt": f"{names}: {definition}",
            "completion": FIELDS[number],
            "above": f"{kind} {above[0] if above else offset}",
        }


def sample(rows: Iterable[dict[str, str]], count: int = ROWS) -> list[dict[str, str]]:
    """At most `count` rows, the same ones on each machine."""
    by_field: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_field[row["completion"]].append(row)
    sizes = {field: len(found) for field, found in by_field.items()}
    sources = {field: _few_siblings(found) for field, found in sorted(by_field.items())}
    taken: Counter[str] = Counter()
    chosen: list[dict[str, str]] = []
    while sources and len(chosen) < count:
        field = min(sources, key=lambda name: (taken[name] / sizes[name] ** 0.5, name))
        for row in sources[field]:
            chosen.append(row)
            taken[field] += 1
            break
        else:
            del sources[field]
    random.Random(SEED).shuffle(chosen)
    return chosen


def _few_siblings(rows: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows of one field in an order of their own, at most `SIBLINGS` below one concept."""
    rows = sorted(rows, key=lambda row: row["prompt"])
    random.Random(f"{SEED}|{rows[0]['completion']}").shuffle(rows)
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["above"]] += 1
        if seen[row["above"]] <= SIBLINGS:
            yield row
