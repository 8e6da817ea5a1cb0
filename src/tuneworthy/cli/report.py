from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneworthy.cli import options, screen

if TYPE_CHECKING:
    from tuneworthy.config import Project
    from tuneworthy.store import RunFolder


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a project: its newest run.")
    ] = Path(),
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check hashes, scores and verdict instead; exit with 1 if one is wrong.",
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Rebuild decision and report from a run folder, or verify it; no model is loaded.

    Example: tuneworthy report runs/home-commands-20261123-101500-1a2b3c4d --verify
    """
    from tuneworthy.cli.decide import show
    from tuneworthy.workflows import concluding, retuning

    folder, project = concluding.find_run(run)
    if verify:
        _verify(folder, project, json)
        return
    decision = concluding.rebuild(folder, project)
    retuning.rebuild(folder, project)
    if json:
        screen.print_json(decision)
    else:
        show(decision, str(folder.report))


def _verify(folder: RunFolder, project: Project, json: bool) -> None:
    from dataclasses import asdict

    from tuneworthy import store
    from tuneworthy.errors import StorageError
    from tuneworthy.workflows.verifying import verify

    with screen.Screen() as talk:
        checks = verify(folder, project, lambda text: talk({"kind": "note", "text": text}))
    wrong = sum(len(check.wrong or ()) for check in checks)
    sha256 = store.sha256_file(folder.manifest)
    if json:
        found = [{**asdict(check), "state": check.state} for check in checks]
        screen.print_json({"run": folder.path.name, "manifest_sha256": sha256, "checks": found})
    else:
        for check in checks:
            screen.out.print(f"{check.what:14} {check.state:12} {check.note}", soft_wrap=True)
            for text in check.wrong or ():
                screen.out.print(f"  {text}", soft_wrap=True)
        screen.out.print(f"manifest.json  {sha256}")
    if wrong:
        raise StorageError(
            f"{wrong} thing{'s' if wrong > 1 else ''} wrong with this run",
            where=str(folder.path),
            hint="put back the files that are named, or measure again: tuneworthy decide --fresh",
        )
