from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import screen


class Action(StrEnum):
    list = "list"
    add = "add"
    remove = "remove"


class Scope(StrEnum):
    infer = "infer"
    train = "train"
    admin = "admin"


def keys(
    action: Annotated[Action, typer.Argument(help="list, add or remove")] = Action.list,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Whose key it is.")] = None,
    scope: Annotated[
        Scope, typer.Option(help="infer: answers; train: jobs too; admin: everything.")
    ] = Scope.infer,
    requests: Annotated[int, typer.Option(min=1, help="Requests a minute.")] = 600,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens a minute, read and said.")] = 1_000_000,
    state: Annotated[
        Path | None, typer.Option(help="The server's folder, as for tuneworthy serve.")
    ] = None,
) -> None:
    """Keys for the server: add one (it is shown once), list them, remove one.

    Example: tuneworthy keys add ci --scope train
    """
    from tuneworthy import store
    from tuneworthy.server.keys import Keys

    known = Keys(state or store.cache_folder() / "server")
    if action == Action.list:
        for key in known.every():
            screen.out.print(f"{key.name}  {key.scope}  since {key.created[:10]}")
        return
    if name is None:
        raise typer.BadParameter(f"whose? tuneworthy keys {action.value} NAME", param_hint="NAME")
    if action == Action.remove:
        known.remove(name)
        screen.out.print(f"removed: {name}")
        return
    key_text = known.add(name, scope.value, requests_per_minute=requests, tokens_per_minute=tokens)
    screen.err.print("keep it: it is not shown again")
    screen.out.print(key_text, soft_wrap=True)
