from __future__ import annotations

from pathlib import Path

from tuneworthy.cli import options, screen

ESTIMATED = (
    "arm",
    "minutes\nestimate",
    "peak GiB\nestimate",
    "run $\nestimate",
    "$/1k requests\nestimate",
    "how the estimate came about",
)


def plan(
    project: options.ProjectArgument = Path(),
    base: options.BaseOption = None,
    settings: options.SetOption = None,
    json: options.JsonOption = False,
) -> None:
    """Estimate minutes, memory and dollars per arm from a short probe, before anything is spent.

    Example: tuneworthy plan demo/home-commands
    """
    loaded = options.load(project, settings, base=base)
    from tuneworthy.workflows.planning import plan as run_plan

    with screen.Screen() as talk:
        result = run_plan(loaded, listener=talk)
    if json:
        screen.print_json(result)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ESTIMATED:
        table.add_column(heading, justify="right" if "\n" in heading else "left")
    for arm in result["arms"]:
        if arm["reason"]:
            table.add_row(arm["arm"], "-", "-", "-", "-", arm["reason"])
            continue
        table.add_row(
            arm["arm"],
            f"{arm['seconds_estimate'] / 60:.1f}",
            f"{arm['memory_bytes_estimate'] / 2**30:.1f}",
            f"{arm['usd_estimate']:.2g}",
            f"{arm['usd_per_1k_requests_estimate']:.2g}",
            arm["how"],
        )
    screen.out.print(table)
    screen.out.print(
        f"All figures are estimates from a probe of {result['probe_seconds']:.0f} s. "
        f"Together: estimate {result['seconds_estimate'] / 60:.0f} minutes "
        f"and ${result['usd_estimate']:.2g}.",
        soft_wrap=True,
    )
    screen.out.print(result["power"], soft_wrap=True)
