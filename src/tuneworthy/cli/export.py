from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneworthy.cli import options, screen


def export(
    arm: Annotated[str, typer.Argument(help="A trained arm: lora, full …")],
    project: options.ProjectArgument = Path(),
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A new folder; by default exports/ in the project."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="adapter, merged, gguf or ollama.")
    ] = "adapter",
    precision: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; q8_0 too for gguf and ollama."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run; by default the newest with this arm.")
    ] = None,
    openvino: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="An interpreter with OpenVINO GenAI, to check GGUF."),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Write a trained arm as files that others load; they are loaded and compared before it ends.

    Example: tuneworthy export lora demo/home-commands --format gguf --precision q8_0
    """
    from tuneworthy import store
    from tuneworthy.workflows import exporting

    with screen.Screen() as talk:
        folder = exporting.export(
            project,
            arm,
            to=to,
            format_=format_,
            precision=precision,
            run=run,
            openvino=openvino,
            listener=talk,
        )
    record = store.read_json(folder / "export.json")
    if json:
        screen.print_json(record)
        return
    for check in record["checks"]:
        screen.out.print(f"{check['consumer']}: {check['said']}", soft_wrap=True)
    screen.out.print(f"exported to {folder}", soft_wrap=True)
