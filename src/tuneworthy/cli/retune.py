from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def retune(
    base: Annotated[str, typer.Option("--base", help="The new base model.")],
    project: options.ProjectArgument = Path(),
    run: Annotated[
        str | None,
        typer.Option(
            metavar="OLD", help="The earlier run; by default the newest one on another base."
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="Exit with 3 unless this holds: 'no arm worse by more than 0.02'."),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Do everything again on a new base model, and compare old and new row by row.

    Continues an interrupted retune. Example: tuneworthy retune --base gemma-3-270m demo/home-commands
    """
    from tuneworthy import store
    from tuneworthy.errors import GateClosed
    from tuneworthy.report import retuned
    from tuneworthy.workflows import retuning

    with screen.Screen() as talk:
        folder = retuning.retune(project, base, run=run, gate=gate, listener=talk)
    found = store.read_json(folder.retune)
    if json:
        screen.print_json(found)
    else:
        screen.out.print(retuned.table(found))
        screen.out.print(retuned.summary(found, folder), crop=False)
    if found["gate"] and not found["gate"]["open"]:
        raise GateClosed(
            "; ".join(found["gate"]["because"]),
            where=f"--gate '{gate}'",
            hint=f"read row by row in {folder.path / 'retune.html'}",
        )
