from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    projects: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PROJECT]...", help="Folders of projects; default: this one."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a loopback one needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8765,
    state: Annotated[
        Path | None, typer.Option(help="Folder of keys, jobs and uploaded files.")
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar="TUNEWORTHY_JOBS", help="PostgreSQL for the queue of jobs."
        ),
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Work on fine-tuning jobs here.")
    ] = True,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=BASE", help="Train BASE where a job asks for the hosted model NAME."
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Merge adapters, for a server of one; several take turns."),
    ] = False,
    log_traffic: Annotated[
        bool, typer.Option("--log-traffic", help="Keep prompts and answers in PROJECT/traffic/.")
    ] = False,
    keep_days: Annotated[int, typer.Option(min=1, help="Days that traffic is kept.")] = 30,
) -> None:
    """Serve arms behind an OpenAI-compatible API, with fine-tuning jobs and a web page.

    Example: tuneworthy serve demo/home-commands
    """
    stand_ins = {}
    for pair in model or []:
        name, equals, base = pair.partition("=")
        if not (name and equals and base):
            raise typer.BadParameter(f"'{pair}' is not NAME=BASE", param_hint="--model")
        stand_ins[name] = base
    from tuneworthy.server import running
    from tuneworthy.server.house import House
    from tuneworthy.server.traffic import Traffic

    traffic = Traffic(keep_days) if log_traffic else None
    folders = projects or [Path()]
    house = House(folders, state, jobs=jobs, stand_ins=stand_ins, traffic=traffic, merge=merge)
    running.run(house, host, port, work=worker)
