"""php-summary: what a PHP function does, at length -> the same in at most two sentences.

Behaviour that a model has: nothing must be learnt but how short and how plain, which an instruction
or a few examples can say.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tuneworthy.examples.php_summary_metric import MAX_WORDS, content
from tuneworthy.registry import Deb, Say, fetch_debs
from tuneworthy.store import write_jsonl, write_text

FILE = "usr/share/kdevphpsupport/phpfunctions.php"
DEB = Deb(
    "kdevelop-php",
    "22.12.2-1",
    "80ac488c1a0562fcf225e6c1a76c76a6d749d93380987af2b76540bdc2de6f4c",
    (FILE,),
)
SEED = "php-summary 1"
WORDS = range(MAX_WORDS + 1, 91)
"""Of a description: a shorter one could be handed back as it is."""
SUMMARY_WORDS = range(4, 17)
SAID = 0.5
"""Share of a summary's content words that the description must say, too."""

README = """# php-summary

{rows} descriptions of PHP functions and methods, each with the one line that the manual itself
puts above it.

Source: `kdevelop-php` {version} of Debian 12 (GPL-2.0 or later), file `phpfunctions.php`, which
was made from the PHP manual (its text is under CC BY 3.0, the PHP Documentation Group). Left out:
descriptions of fewer than {shortest} or more than {longest} words, descriptions that begin with
their own summary or say less than half of its content words, and those with holes where the manual
had a cross-reference.

`metric.py` gives the share of the summary's content words that an answer says; an answer of more
than two sentences, or of {shortest} words and more, scores 0.

`part` names the class of a method, or how a function's name begins. Rows of one part never straddle
a split.
"""

_BLOCK = re.compile(
    r"^[ \t]*(?:(?:abstract|final) )*(?:class|interface) (?P<class>\w+)"
    r"|/\*\*\n(?P<comment>(?:(?!\*/).)*)\*\*/\s*"
    r"(?:(?:public|protected|private|static|final|abstract)\s+)*function\s+&?(?P<name>\w+)",
    re.MULTILINE | re.DOTALL,
)
# Where a cross-reference or a table was taken out, its neighbours are left.
_HOLE = re.compile(
    r"\s[.,;:)]|\(\s|\b(the|in|see|by|of|to|as|with|using|and|or|from) [.,;]|<|\\\w|[{}]"
    r"|\bif is\b|\b(the|of|to|in|by|with|from|for|if|a|an)$"
)


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl, metric.py and README.md into `folder`."""
    (root,) = fetch_debs([DEB], say)
    rows = pairs((root / FILE).read_text(encoding="utf-8"))
    say(f"found {len(rows)} descriptions with a summary")
    text = README.format(
        rows=len(rows), version=DEB.version, shortest=WORDS.start, longest=WORDS.stop - 1
    )
    write_jsonl(folder / "examples.jsonl", rows)
    shutil.copyfile(Path(__file__).with_name("php_summary_metric.py"), folder / "metric.py")
    write_text(folder / "README.md", text)


def pairs(source: str) -> list[dict[str, str]]:
    """Rows of the file, shuffled; a description, or a summary, that comes again is left out."""
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for name, part, summary, description in documented(source):
        if not seen.isdisjoint((summary, description)) or not _fits(summary, description):
            continue
        seen |= {summary, description}
        prompt = f"{name}: {description}"
        rows.append({"prompt": prompt, "completion": f"{summary}.", "part": part})
    random.Random(SEED).shuffle(rows)
    return rows


def documented(source: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, part of the manual, summary and description of every function that has both."""
    within = ""
    for block in _BLOCK.finditer(source):
        if block["class"]:
            within = block["class"]
            continue
        summary, *description = _paragraphs(block["comment"])
        if not description:
            continue
        # A method stands indented in its class.
        method = source[source.rfind("\n", 0, block.start()) + 1 : block.start()].isspace()
        name = f"{within}::{block['name']}" if method else block["name"]
        part = within if method else block["name"].partition("_")[0]
        yield name, part, summary, " ".join(description)


def _paragraphs(comment: str) -> list[str]:
    """Paragraphs above the first tag, links replaced by their names; at least one."""
    lines = [re.sub(r"^\s*\* ?", "", line) for line in comment.splitlines()]
    text = re.split(r"^@", "\n".join(lines), maxsplit=1, flags=re.MULTILINE)[0]
    text = re.sub(r"\{@link\s+([^}]*)\}", r"\1", text)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def _fits(summary: str, description: str) -> bool:
    wanted = content(summary)
    return (
        len(description.split()) in WORDS
        and len(summary.split()) in SUMMARY_WORDS
        and not _plain(description).startswith(_plain(summary)[:30])
        and len(wanted & content(description)) >= SAID * len(wanted)
        and description[0].isupper()
        and description[-1] == "."
        and summary[-1] != "."
        and not _HOLE.search(description)
        and not _HOLE.search(summary)
    )


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower())
