from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def check(
    project: options.ProjectArgument = Path(),
    settings: options.SetOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on any warning.")] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count tokens too: loads the base model.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Read every row; say what is kept or dropped and why, and what looks wrong.

    Example: tuneworthy check demo/home-commands --strict
    """
    loaded = options.load(project, settings)
    from tuneworthy.errors import GateClosed
    from tuneworthy.workflows.checking import check as run_check

    with screen.Screen() as talk:
        result = run_check(loaded, tokens=tokens, listener=talk)
    if json:
        screen.print_json(result)
    else:
        _show(result)
    warnings = [f for f in result["findings"] if f["severity"] == "warning"]
    if strict and warnings:
        raise GateClosed(
            f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}, --strict allows none",
            hint="mend the rows named above, or check without --strict",
        )


def _show(result: dict[str, object]) -> None:
    from rich.table import Table

    rows = result["rows"]
    assert isinstance(rows, dict)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    screen.out.print(table)
    findings = result["findings"]
    assert isinstance(findings, list)
    for finding in findings:
        screen.out.print(f"{finding['severity']}: {finding['summary']}", soft_wrap=True)
        if finding["sources"]:
            shown = ", ".join(finding["sources"][:5])
            more = finding["count"] - min(5, len(finding["sources"]))
            screen.out.print(f"  {shown}" + (f" and {more} more" if more > 0 else ""))
    if not findings:
        screen.out.print("nothing looks wrong")
