from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import screen


def init(
    examples: Annotated[Path, typer.Argument(metavar="DATA", help="A file of rows.")],
    documents: Annotated[Path | None, typer.Option(help="A folder or file of documents.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a tuneworthy.yaml that is there.")
    ] = False,
) -> None:
    """Write a tuneworthy.yaml beside your rows, from what they look like.

    Example: tuneworthy init examples.jsonl --documents docs/
    """
    from tuneworthy.workflows.starting import init as write

    file = write(examples, documents, force=force)
    screen.out.print(file.read_text("utf-8"), end="", markup=False)
    screen.err.print(f"written to {file}; next: tuneworthy check {file.parent}")
