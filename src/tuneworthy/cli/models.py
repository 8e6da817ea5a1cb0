from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneworthy.cli import options, screen

if TYPE_CHECKING:
    from tuneworthy.workflows.deployed import Deployed


def models(
    projects: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PROJECT]...", help="With --mine: projects, or folders of projects."
        ),
    ] = None,
    mine: Annotated[
        bool,
        typer.Option("--mine", help="What answers for your tasks, and what of it is stale."),
    ] = False,
    fetch: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Fetch this one now, so that later runs need no network."
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """List the known base models and where they come from, or what you have deployed.

    Example: tuneworthy models --mine demo/home-commands
    """
    if mine:
        _mine(projects or [Path()], json)
        return
    if projects:
        raise typer.BadParameter("projects go with --mine", param_hint="PROJECT")
    from tuneworthy.engine.models import describe, locate

    if fetch:
        with screen.Screen() as talk:
            located = locate(fetch, Path(), lambda text: talk({"kind": "note", "text": text}))
        screen.err.print(f"{fetch}: ready in {located.folder}", soft_wrap=True)
        return
    known = describe()
    if json:
        screen.print_json(known)
        return
    screen.out.print("fake\n  deterministic, no weights: for trying things; ready")
    for model in known:
        state = "ready" if model["ready"] else "fetched when first used"
        screen.out.print(
            f"{model['name']}\n  {model['what']}; {model['licence']}\n"
            f"  {model['source']}, {model['download_mb']} MB; {state}",
            soft_wrap=True,
        )
    screen.out.print(
        "\nAlso: a folder of safetensors, a file.gguf, hf:owner/name, openai:model@https://host/v1",
        soft_wrap=True,
    )


def _mine(folders: list[Path], json: bool) -> None:
    from dataclasses import asdict

    from tuneworthy.workflows.deployed import deployed

    found = deployed(folders)
    if json:
        screen.print_json([asdict(model) for model in found])
        return
    for model in found:
        for line in _lines(model):
            screen.out.print(line, soft_wrap=True)


def _lines(model: Deployed) -> list[str]:
    from tuneworthy.report import numbers

    how = "promoted" if model.promoted else "by the newest verdict"
    score = "not measured"
    if model.score is not None:
        score = f"{numbers.score(model.score)} {model.metric}"
        if model.interval:
            score += f" ({numbers.interval(model.interval)})"
    return [
        f"{model.task}/{model.arm}" if model.arm else f"{model.task}: no arm is adopted",
        f"  base   {model.base}, sha256 {model.base_sha256[:12]}…",
        f"  data   sha256 {model.data_sha256[:12]}…",
        f"  score  {score} when it was decided, {_age(model.age_days)} ago",
        f"  run    {model.project}/runs/{model.run}, {how}",
        *[f"  stale: {text}" for text in model.stale],
        *[f"  not checked: {text}" for text in model.not_checked],
    ]


def _age(days: float) -> str:
    from tuneworthy.report.numbers import plural

    if days >= 1:
        return plural(int(days), "day")
    minutes = int(days * 24 * 60)
    return plural(minutes // 60, "hour") if minutes >= 60 else plural(minutes, "minute")
