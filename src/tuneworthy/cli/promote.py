from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def promote(
    arm: Annotated[str, typer.Argument(metavar="ARM", help="An arm that was measured; or none.")],
    project: options.ProjectArgument = Path(),
    canary: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Only for this share of the requests, as 0.1."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Answer in the background, to be recorded only.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of this run, not of the newest with a decision."),
    ] = None,
) -> None:
    """Let an arm answer for the task: all requests, a share of them, or in the shadow.

    `none` with --canary 0 or --shadow ends these. A running server follows at once.
    Example: tuneworthy promote few-shot demo/home-commands
    """
    from tuneworthy.server import promotion

    folder = options.load(project).folder
    chosen = None if arm == "none" else arm
    if shadow:
        promotion.set_shadow(folder, chosen, run=run)
        screen.out.print(f"shadow: {chosen or 'none'}")
    elif canary is not None:
        promotion.set_canary(folder, chosen if canary else None, canary, run=run)
        screen.out.print(f"canary: {f'{chosen}, {canary:g} of the requests' if canary else 'none'}")
    else:
        after = promotion.promote(folder, arm, run=run)
        assert after.promoted
        screen.out.print(f"promoted: {after.promoted.arm} of {after.promoted.run}")


def rollback(project: options.ProjectArgument = Path()) -> None:
    """Let the arm answer that was promoted before.

    Example: tuneworthy rollback demo/home-commands
    """
    from tuneworthy.server import promotion

    after = promotion.rollback(options.load(project).folder)
    assert after.promoted
    screen.out.print(f"promoted: {after.promoted.arm} of {after.promoted.run}")
