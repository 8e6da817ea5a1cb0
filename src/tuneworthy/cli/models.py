from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def models(
    fetch: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Fetch this one now, so that later runs need no network."
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """List the known base models and where they come from.

    Example: tuneworthy models --fetch smollm2-135m-instruct
    """
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
