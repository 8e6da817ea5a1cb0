from __future__ import annotations

from tuneworthy.cli import options, screen


def doctor(json: options.JsonOption = False) -> None:
    """Say what this machine can do, and what is missing.

    Example: tuneworthy doctor
    """
    from tuneworthy.workflows.machine import examine

    with screen.Screen() as talk:
        talk({"kind": "note", "text": "trying number formats, in half a minute at most"})
        findings = examine()
    if json:
        screen.print_json(findings)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in findings.items():
        table.add_row(name.replace("_", " "), str(value))
    screen.out.print(table)
