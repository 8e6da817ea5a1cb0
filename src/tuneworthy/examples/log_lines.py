"""log-lines: a line of a server's log -> when and from where somebody was turned away, as JSON.

Extraction: every value stands in the line, but each service writes it in its own way, and one of
several addresses is the one that was asked for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneworthy.registry import Deb, Say, fetch_debs
from tuneworthy.store import write_jsonl, write_text

FOLDER = "usr/lib/python3/dist-packages/fail2ban/tests/files/logs/"
DEB = Deb(
    "fail2ban",
    "1.0.2-2",
    "9717b7aeef7b00f0df4c76045cd6dab2755cbe9fc99dbfe3cd114126880ec7f7",
    (FOLDER,),
)
SEED = "log-lines 1"
MAX_CHARACTERS = 300
FORM_WORDS = 3

README = """# log-lines

{rows} lines from the logs of {services} services, each with the date, the time and the address of
the failure that it reports, as one JSON object; date and time are null where the line has none.

Source: `fail2ban` {version} of Debian 12 (GPL-2.0 or later, the Fail2Ban developers), the logs in
`tests/files/logs/` and the expectations that their authors wrote above each line. Left out: lines
that report no failure, lines of {characters} characters and more, and lines in which the expected
time or address does not stand as such (another time zone, a name for an address). The year is left
out because most lines have none.

`form` is the service of a row and the first words of its message. Rows of one form never straddle a
split, so that the test asks about messages that no training row shows.
"""

_HEAD = re.compile(r"\]:? |\w: ")
"""Before it stand the time, the host and the process."""
_WORD = re.compile(r"(?<![^\s\[(\"'])[A-Za-z]{2,}(?=[:,.\])\"']?(?:\s|$))")
_TIME = re.compile(r"\d:\d\d:\d\d")
_EXPECTED = re.compile(r"#\s*failJSON:\s*(\{.*\})\s*", re.IGNORECASE)


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl and README.md into `folder`."""
    (root,) = fetch_debs([DEB], say)
    logs = root / FOLDER
    files = sorted(path for path in logs.rglob("*") if path.is_file())
    rows = collect(
        (file.relative_to(logs).as_posix(), file.read_text("utf-8", "replace")) for file in files
    )
    services = {row["form"].partition(":")[0] for row in rows}
    say(f"found {len(rows)} failures in the logs of {len(services)} services")
    text = README.format(
        rows=len(rows), services=len(services), version=DEB.version, characters=MAX_CHARACTERS
    )
    write_jsonl(folder / "examples.jsonl", rows)
    write_text(folder / "README.md", text)


def collect(logs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows from pairs of a file's name and its text, each line once, shuffled."""
    rows: dict[str, dict[str, str]] = {}
    for name, text in logs:
        for line, expected in expectations(text):
            answer = failure(line, expected)
            if answer is not None and len(line) < MAX_CHARACTERS:
                completion = json.dumps(answer, separators=(",", ":"))
                row = {"prompt": line, "completion": completion, "form": form(name, line)}
                rows.setdefault(line, row)
    found = list(rows.values())
    random.Random(SEED).shuffle(found)
    return found


def form(name: str, line: str) -> str:
    """What lines that differ in names and numbers alone share; a journal's are the service's own."""
    message = _HEAD.split(line, maxsplit=1)[-1]
    return f"{name.removesuffix('-journal')}: {' '.join(_WORD.findall(message)[:FORM_WORDS])}"


def expectations(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of a log, each with the JSON of the comment right above it."""
    expected = None
    for line in text.splitlines():
        comment = _EXPECTED.fullmatch(line)
        if comment:
            expected = json.loads(comment[1])
        elif not line.startswith("#"):
            if expected is not None and line.strip():
                yield line.strip(), expected
            expected = None


def failure(line: str, expected: dict[str, Any]) -> dict[str, str | None] | None:
    """Date, time and host of the failure; None where the line does not say what is expected."""
    host = expected.get("host")
    if not expected.get("match") or not host:
        return None
    if not re.search(rf"(?<![\w.:]){re.escape(host)}(?![\w:]|\.\w)", line):
        return None
    if expected.get("time") is None:
        return None if _TIME.search(line) else {"date": None, "time": None, "host": host}
    moment = re.fullmatch(r"\d{4}-(\d\d-(\d\d))T(\d\d:\d\d:\d\d)", expected["time"])
    if not moment:
        return None
    date, day, time = moment.groups()
    said = re.search(rf"(?<!\d){time}(?!\d)", line) and re.search(
        rf"(?<!\d)({int(day)}|(\d\d)*{day})(?!\d)", line
    )
    return {"date": date, "time": time, "host": host} if said else None
