from __future__ import annotations

import os
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

    Several GPUs: torchrun --nproc-per-node 8 -m tuneworthy train lora PROJECT

    Example: tuneworthy train lora demo/home-commands
    """
    loaded = options.load(project, settings, base=base)
    from tuneworthy.workflows.single import assist, fit_one

    if int(os.environ.get("RANK", "0")) > 0:
        assist(loaded, arm)
        return
    with screen.Screen() as talk:
        folder, record = fit_one(loaded, arm, listener=talk)
    if json:
        screen.print_json(record)
        return
    screen.out.print(f"{arm}: {record['why']}", soft_wrap=True)
    screen.out.print(f"kept in {folder.arm(arm)}", soft_wrap=True)
    screen.err.print(f"next: tuneworthy eval {arm} {project}")
