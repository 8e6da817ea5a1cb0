"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuneworthy.config import Project, load_project

ProjectArgument = Annotated[
    Path, typer.Argument(metavar="PROJECT", help="A folder or a tuneworthy.yaml.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Another base model than the project file's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another setting, as --set data.test=100."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def load(project: Path, settings: list[str] | None = None, **named: Any) -> Project:
    """The project with what the command line says in place of what the file says."""
    import yaml

    overrides: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"'{setting}' is not KEY=VALUE", param_hint="--set")
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"'{value}' is no YAML value", param_hint="--set") from None
    overrides |= {name: value for name, value in named.items() if value is not None}
    return load_project(project, overrides)
