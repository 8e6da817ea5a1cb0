"""numpydoc: Python functions -> their docstrings in the style of pandas.

A second house style beside phpdoc's: a sentence, then a section for parameters and one for what is
returned, each name with its type and an indented line.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from tuneworthy.registry import Say, Wheel, fetch_wheel
from tuneworthy.store import write_jsonl, write_text

WHEEL = Wheel(
    "pandas",
    "3.1.1",
    "4f1602f614bb83f443381dbcbb94c4ac764b2e50c8d6c965614c5cd83e328c47",
    ("pandas/core/", "pandas/io/", "pandas/plotting/", "pandas/tseries/", "pandas/util/"),
)
MAX_CHARACTERS = 900
SEED = "numpydoc 1"

README = """# numpydoc

{rows} Python functions with the docstrings that their authors wrote, in the house style of pandas.

Source: `pandas` {version} from PyPI (BSD-3-Clause, the pandas development team), {files} files. The
code is parsed, never imported. A row is a function or method without its docstring and decorators,
and the docstring up to the sections that only a reader of the whole library could write (See Also,
Notes, Examples, References). Left out: docstrings without a sentence in front of a section
Parameters or Returns, code or docstrings that come again, and functions that with their docstring
take {characters} characters and more.

`file` names the file of a row. Rows of one file never straddle a split.
"""

_CUT = re.compile(r"\n+(See Also|Notes?|Examples?|References|Warnings?|Attributes)\n-{3,}.*", re.S)
_SECTION = re.compile(r"\n\n(Parameters|Returns)\n-{3,}\n")


def build(folder: Path, say: Say) -> None:
    """Write examples.jsonl and README.md into `folder`."""
    root = fetch_wheel(WHEEL, say)
    files = sorted(path for member in WHEEL.members for path in (root / member).rglob("*.py"))
    rows = pairs(
        (file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files
    )
    count = len({row["file"] for row in rows})
    say(f"found {len(rows)} documented functions in {count} files")
    text = README.format(
        rows=len(rows), files=count, version=WHEEL.version, characters=MAX_CHARACTERS
    )
    write_jsonl(folder / "examples.jsonl", rows)
    write_text(folder / "README.md", text)


def pairs(sources: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows from pairs of a file's name and its source, shuffled; code, or a docstring, that comes again is left out."""
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for name, source in sources:
        for code, docstring in functions(source):
            completion = _CUT.sub("", docstring).rstrip()
            if len(code) + len(completion) < MAX_CHARACTERS and _SECTION.search(completion):
                if seen.isdisjoint((code, completion)):
                    rows.append({"prompt": code, "completion": completion, "file": name})
                seen |= {code, completion}
    random.Random(SEED).shuffle(rows)
    return rows


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Every function with a docstring and a body: its code without the docstring, and that."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            first = node.body[0]
            assert first.end_lineno is not None
            head = lines[node.lineno - 1 : first.lineno - 1]
            body = lines[first.end_lineno : node.end_lineno]
            while body and not body[0].strip():
                del body[0]
            yield textwrap.dedent("\n".join([*head, *body])), docstring
