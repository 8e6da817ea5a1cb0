"""Worked examples built from real data in package registries; none of it is kept here."""

from __future__ import annotations

import difflib
import importlib
import os
import secrets
import shutil
from pathlib import Path

from tuneworthy.errors import ProjectError
from tuneworthy.registry import Say
from tuneworthy.store import guarded

EXAMPLES = {
    "aws-limits": "aws_limits",
    "home-commands": "home_commands",
    "log-lines": "log_lines",
    "numpydoc": "numpydoc",
    "php-summary": "php_summary",
    "phpdoc": "phpdoc",
    "pokedex": "pokedex",
    "wordnet": "wordnet",
}
"""Example -> module of this package whose `build(folder, say)` writes it into an empty folder."""


def build(name: str, folder: Path, say: Say) -> Path:
    """The example's folder, written: tuneworthy.yaml, examples.jsonl, README.md, documents.

    Either all of it is there or nothing. Raises ProjectError for an unknown name or a folder
    that is not empty, FetchError where the data cannot be had, MissingExtra where the example
    needs an optional package.
    """
    if name not in EXAMPLES:
        near = difflib.get_close_matches(name, EXAMPLES, 1)
        raise ProjectError(
            f"no example is called '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""),
            hint=f"examples: {', '.join(EXAMPLES)}",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(
            "is not an empty folder, and an example never overwrites",
            where=str(folder),
            hint=f"tuneworthy example {name} {folder}-2",
        )
    module = importlib.import_module(f"tuneworthy.examples.{EXAMPLES[name]}")
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with guarded(folder):
        temporary.mkdir(parents=True)
        try:
            module.build(temporary, say)
            project = Path(__file__).with_name(f"{EXAMPLES[name]}.yaml")
            shutil.copyfile(project, temporary / "tuneworthy.yaml")
            if folder.exists():
                folder.rmdir()
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
