from __future__ import annotations

from tuneworthy.cli import options, screen


def models(json: options.JsonOption = False) -> None:
    """List the known base models and where they come from.

    Example: tuneworthy models
    """
    from tuneworthy.engine.models import describe

    known = describe()
    if json:
        screen.print_json(known)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("base", "what", "licence", "from", "ready"):
        table.add_column(heading, overflow="fold")
    table.add_row("fake", "deterministic, no weights: for trying things", "Apache-2.0", "-", "yes")
    for model in known:
        source = f"{model['source']}, {model['download_mb']} MB"
        ready = "yes" if model["ready"] else "fetched when used"
        table.add_row(model["name"], model["what"], model["licence"], source, ready)
    screen.out.print(table)
    screen.out.print(
        "\nAlso: a folder of safetensors, a file.gguf, hf:owner/name, openai:model@https://host/v1"
    )
