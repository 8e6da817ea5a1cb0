"""aws-limits: questions about what operations of web services take, and one document an operation.

Knowledge: limits and parameters are what somebody decided once. The test asks about services that no
training row mentions, so that only the documents hold the answers.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneworthy.registry import Say, Wheel, fetch_wheel
from tuneworthy.store import write_jsonl, write_text

WHEEL = Wheel(
    "botocore",
    "1.44.5",
    "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
    ("botocore/data/",),
)
SEED = "aws-limits 1"
OPERATIONS = 3
"""Of a service, at most."""
MAX_MEMBERS = 5
REQUIRED = range(2, 4)
CHOICES = range(2, 5)
LIMITS = range(2, 100_001)
"""Beyond lies what means no limit."""

_EVERYWHERE = re.compile(r"token|max_?(results|items)|page_?size|tag|arn|limit|marker", re.I)

README = """# aws-limits

{rows} questions about what operations of {services} web services take, with short answers, and one
document an operation in `documents.jsonl`, in which the answer stands.

Source: `botocore` {version} from PyPI (Apache-2.0, Amazon.com), files
`data/*/*/service-2.json.gz`, of each service the newest version. A document begins with the first
sentence of the operation's own description; questions and the other sentences are Tuneworthy's
words around these records. Left out: operations with more than {members} parameters, and questions
about what is much the same everywhere (page sizes, tokens, tags, resource names).

`metric.py` judges whether an answer states the fact, in whatever sentence.

`service` names the service of a row. Rows of one service never straddle a split, because its
operations share parameters and limits.
"""

QUESTIONS = {
    "required": (
        "Which parameters does {operation} of {service} require?",
        "What must a call of {operation} in {service} give?",
        "Name the required parameters of {service}'s {operation}.",
    ),
    "string": (
        "How many characters may {member} have in {operation} of {service}?",
        "What is the maximum length of {member} in {service}'s {operation}?",
        "How long may {member} be when {operation} of {service} is called?",
    ),
    "integer": (
        "What is the largest {member} that {operation} of {service} takes?",
        "How high may {member} be in {service}'s {operation}?",
        "Up to which number can {member} be set in {operation} of {service}?",
    ),
    "list": (
        "How many items may {member} hold in {operation} of {service}?",
        "What is the largest number of items in {member} of {service}'s {operation}?",
        "Up to how many entries does {operation} of {service} take in {member}?",
    ),
    "choice": (
        "Which values may {member} have in {operation} of {service}?",
        "What can {member} be set to in {service}'s {operation}?",
        "Name the values that {operation} of {service} takes for {member}.",
    ),
}
"""Kind of fact -> ways to ask for it."""

SENTENCES = {
    "required": "It requires {answer}.",
    "string": "{member} has at most {answer} characters.",
    "integer": "{member} is at most {answer}.",
    "list": "{member} holds at most {answer} items.",
    "choice": "{member} is {answer}.",
}
"""Kind of fact -> how a document states it."""


@dataclass(frozen=True, slots=True)
class Fact:
    kind: str
    member: str
    answer: str


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl, documents.jsonl, metric.py and README.md into `folder`."""
    root = fetch_wheel(WHEEL, say) / WHEEL.members[0]
    newest = {path.parts[-3]: path for path in sorted(root.glob("*/*/service-2.json.gz"))}
    models = (json.loads(gzip.decompress(path.read_bytes())) for path in newest.values())
    rows, documents = ask(models)
    services = {row["service"] for row in rows}
    say(f"asked {len(rows)} questions about {len(services)} services")
    write_jsonl(folder / "examples.jsonl", rows)
    write_jsonl(folder / "documents.jsonl", documents)
    shutil.copyfile(Path(__file__).with_name("aws_limits_metric.py"), folder / "metric.py")
    text = README.format(
        rows=len(rows), services=len(services), version=WHEEL.version, members=MAX_MEMBERS
    )
    write_text(folder / "README.md", text)


def ask(
    models: Iterable[dict[str, Any]],
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A question an operation, shuffled, and a document an operation, in the order of services."""
    rows: list[dict[str, str]] = []
    documents: list[dict[str, str]] = []
    services: set[str] = set()
    for model in models:
        service = model["metadata"]["serviceId"]
        if service in services:
            continue  # an older model of the same service, under another name
        services.add(service)
        rng = random.Random(f"{SEED}|{service}")
        known = {
            name: found
            for name in model["operations"]
            if _worth_asking(found := facts(model, name))
        }
        asked: set[tuple[str, str]] = set()
        for name in rng.sample(sorted(known), min(OPERATIONS, len(known))):
            documents.append(describe(model, name, known[name]))
            worthy = _worth_asking(known[name])
            kind = rng.choice(sorted({fact.kind for fact in worthy}))
            fact = rng.choice([fact for fact in worthy if fact.kind == kind])
            wording = rng.choice(QUESTIONS[kind])
            if (fact.member or name, fact.answer) in asked:
                continue
            asked.add((fact.member or name, fact.answer))
            prompt = wording.format(operation=name, service=service, member=fact.member)
            rows.append({"prompt": prompt, "completion": fact.answer, "service": service})
    random.Random(SEED).shuffle(rows)
    return rows, documents


def facts(model: dict[str, Any], operation: str) -> list[Fact]:
    """What can be asked about an operation; nothing where it has too many parameters."""
    record, shapes = model["operations"][operation], model["shapes"]
    if not record.get("documentation") or "input" not in record or record.get("deprecated"):
        return []
    taken = shapes[record["input"]["shape"]]
    members = taken.get("members", {})
    if not 1 <= len(members) <= MAX_MEMBERS:
        return []
    found = []
    if taken.get("required"):
        found.append(Fact("required", "", _listed(taken["required"], "and")))
    for name, member in members.items():
        shape = shapes[member["shape"]]
        kind = {"long": "integer"}.get(shape["type"], shape["type"])
        if len(shape.get("enum", [])) in CHOICES:
            found.append(Fact("choice", name, _listed(shape["enum"], "or")))
        elif kind in ("string", "integer", "list") and _is_limit(shape):
            found.append(Fact(kind, name, str(shape["max"])))
    return found


def _is_limit(shape: dict[str, Any]) -> bool:
    most = shape.get("max")  # in some records 1.0E9, for no limit
    return isinstance(most, int) and most in LIMITS and most != shape.get("min")


def _worth_asking(known: list[Fact]) -> list[Fact]:
    """Facts that nobody guesses: what is alike everywhere, and a lone name, are left out."""
    return [
        fact
        for fact in known
        if not _EVERYWHERE.search(fact.member or fact.answer)
        and (fact.member or len(re.split(", | and ", fact.answer)) in REQUIRED)
    ]


def describe(model: dict[str, Any], operation: str, known: Iterable[Fact]) -> dict[str, str]:
    """An operation's document: `id` and `text`."""
    service = model["metadata"]["serviceId"]
    said = [SENTENCES[f.kind].format(member=f.member, answer=f.answer) for f in known]
    about = first_sentence(model["operations"][operation]["documentation"])
    text = " ".join([f"{operation} of {service}: {about}", *said])
    return {"id": f"{service}/{operation}", "text": text}


def first_sentence(documentation: str) -> str:
    """Of a description in HTML, as plain text."""
    text = html.unescape(re.sub(r"<[^>]*>", " ", documentation))
    text = re.sub(r"\s+([.,;:])", r"\1", " ".join(text.split()))
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return sentence if sentence[-1:] in (".", "!", "?") else f"{sentence}."


def _listed(names: list[str], joint: str) -> str:
    """`A`, `A and B`, `A, B and C`."""
    *front, last = names
    return f"{', '.join(front)} {joint} {last}" if front else last
