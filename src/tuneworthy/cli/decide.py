from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def decide(
    project: options.ProjectArgument = Path(),
    base: options.BaseOption = None,
    arms: Annotated[
        str | None, typer.Option(help="Only these arms, as --arms zero-shot,lora.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time limit: 90s, 30m, 4h or none.")] = None,
    settings: options.SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew even if a run can be continued.")
    ] = False,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive",
            help="Every arm on all rows, three seeds, and parts of the rows, even where it is settled.",
        ),
    ] = False,
    require: Annotated[
        str | None, typer.Option(metavar="ARM", help="Exit with 3 unless this arm is adopted.")
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Measure every arm on the same sealed rows and say what to do.

    Continues an interrupted run. Example: tuneworthy decide demo/home-commands --budget 30m
    """
    named = {"base": base, "budget": budget, "arms": _names(arms), "exhaustive": exhaustive or None}
    loaded = options.load(project, settings, **named)
    from tuneworthy import store
    from tuneworthy.config import ARM_NAMES
    from tuneworthy.errors import GateClosed
    from tuneworthy.workflows import deciding

    if require is not None and require not in ARM_NAMES:
        raise typer.BadParameter(
            f"no arm is called '{require}' (known: {', '.join(ARM_NAMES)})", param_hint="--require"
        )
    with screen.Screen() as talk:
        run = deciding.decide(loaded, listener=talk, fresh=fresh)
    decision = store.read_json(run.decision)
    if json:
        screen.print_json(decision)
    else:
        show(decision, str(run.report))
    if require and (decision["verdict"], decision["arm"]) != ("adopt", require):
        verdict = decision["verdict"] + (
            f" {decision['arm']}" if decision["verdict"] == "adopt" else ""
        )
        raise GateClosed(
            f"the verdict is {verdict}, not adopt {require}",
            hint=f"read why in {run.report}",
        )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def show(decision: dict[str, object], report: str) -> None:
    """The verdict table on stdout."""
    from tuneworthy.report import text

    screen.out.print(text.arms_table(decision))
    screen.out.print(text.verdict_text(decision, report), crop=False)
