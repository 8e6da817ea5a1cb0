from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def evaluate(
    arm: Annotated[str, typer.Argument(help="The arm to measure; it is fitted first if need be.")],
    project: options.ProjectArgument = Path(),
    base: options.BaseOption = None,
    settings: options.SetOption = None,
    json: options.JsonOption = False,
) -> None:
    """Measure one arm on the sealed test rows; the opening is logged.

    Example: tuneworthy eval zero-shot demo/home-commands
    """
    loaded = options.load(project, settings, base=base)
    from tuneworthy.workflows.single import measure_one

    with screen.Screen() as talk:
        folder, result = measure_one(loaded, arm, listener=talk)
    if json:
        screen.print_json(result)
        return
    bounds = result["interval"]
    interval = f"95 % interval [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "no interval"
    score = "not measurable" if result["score"] is None else f"{result['score']:.3f}"
    screen.out.print(f"{arm}: {score}, {interval}, n {result['n']}, {result['failures']} failures")
    screen.out.print(f"predictions in {folder.predictions(arm)}", soft_wrap=True)
