from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def train(
    arm: Annotated[str, typer.Argument(help="The arm to fit: lora, full, linear, few-shot …")],
    project: options.ProjectArgument = Path(),
    base: options.BaseOption = None,
    settings: options.SetOption = None,
    json: options.JsonOption = False,
) -> None:
    """Fit one arm on train and dev rows; the sealed rows stay sealed.

    Example: tuneworthy train lora demo/home-commands
    """
    loaded = options.load(project, settings, base=base)
    from tuneworthy.workflows.single import fit_one

    with screen.Screen() as talk:
        folder, record = fit_one(loaded, arm, listener=talk)
    if json:
        screen.print_json(record)
        return
    screen.out.print(f"{arm}: {record['why']}", soft_wrap=True)
    screen.out.print(f"kept in {folder.arm(arm)}", soft_wrap=True)
    screen.err.print(f"next: tuneworthy eval {arm} {project}")
