from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a project: its newest run.")
    ] = Path(),
    json: options.JsonOption = False,
) -> None:
    """Rebuild decision and report from a run folder; no model is loaded.

    Example: tuneworthy report runs/home-commands-20261123-101500-1a2b3c4d
    """
    from tuneworthy.cli.decide import show
    from tuneworthy.workflows import deciding

    folder, project = deciding.find_run(run)
    decision = deciding.rebuild(folder, project)
    if json:
        screen.print_json(decision)
    else:
        show(decision, str(folder.report))
