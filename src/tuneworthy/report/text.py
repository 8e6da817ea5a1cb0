"""Tables and the verdict for a terminal. Everything reads the same without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from tuneworthy.report import numbers, words

ADOPTED = "*"
SHORT = "n/m"
"""Not measurable, in a column that has no room to say so; the caption does."""


def arms_table(decision: words.Decision) -> Table:
    """Every arm with n, score and interval, best first; 80 columns wide or less."""
    table = plain_table(
        caption=f"{ADOPTED} {_star_means(decision)}   $/1k: per 1,000 requests",
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("score", "95 % interval", "n", "vs best\nuntrained", "Holm p", "$/1k", "fit"):
        table.add_column(heading, justify="right", no_wrap=heading == "n")
    for arm in by_score(decision["arms"]):
        adopted = arm["arm"] == decision["arm"]
        delta = arm["delta_vs_best_untrained"]
        is_baseline = arm["arm"] == decision["best_untrained"]
        table.add_row(
            Text(f"{ADOPTED if adopted else ' '} {arm['arm']}"),
            _short(numbers.score(arm["score"])),
            _short_interval(arm["interval"]),
            str(arm["n"]),
            "baseline"
            if is_baseline
            else _short(numbers.signed(delta["value"] if delta else None)),
            "-" if is_baseline else _short(numbers.p_value(delta["p_holm"] if delta else None)),
            _short(numbers.usd(arm["cost"]["usd_per_1k_requests"])),
            _short_seconds(arm["cost"]["fit_seconds"]),
            style="bold" if adopted else None,
        )
    if any(SHORT in column.cells for column in table.columns):
        table.caption = f"{table.caption}   {SHORT}: {numbers.NOT_MEASURABLE}"
    return table


def verdict_text(decision: words.Decision, report_path: str) -> Group:
    """The verdict, the reasons and what to do next.

    Print it with `crop=False`: a path wider than the terminal is then whole and on one line.
    """
    sure = words.confidence(decision)
    lines: list[Any] = [
        Text.assemble(("VERDICT  ", "dim"), (words.verdict_line(decision), "bold")),
        Text(),
    ]
    for reason in decision["because"]:
        lines.append(bullet(reason))
    lines.append(bullet(f"Confidence: {sure.level.lower()}. {sure.why}"))
    if decision["would_change"]:
        lines.append(bullet(f"What would change this: {decision['would_change']}"))
    for missing in decision["not_measured"]:
        lines.append(bullet(f"Not measured: {missing['arm']}, {missing['reason']}"))
    if decision["also"]:
        found = numbers.plural(len(decision["also"]), "other finding")
        lines.append(bullet(f"{found} in the report"))
    lines += [
        Text(),
        # A path that is folded can be neither clicked nor copied.
        Text(f"Report  {report_path}", no_wrap=True, overflow="ignore"),
        _hanging("Next", words.next_step(decision), 7),
    ]
    return Group(*lines)


def partial_table(arms: Sequence[dict[str, Any]]) -> Table:
    """What stands so far, while a run works.

    Each arm is {"arm", "state", "done", "total", "score", "interval", "seconds_left"}; a score
    of None is not known yet, `total` None has no end to count to.
    """
    table = plain_table(caption="scores so far; time left is an estimate")
    table.add_column("arm", no_wrap=True)
    table.add_column("state")
    for heading in ("rows", "score", "95 % interval", "time left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in arms:
        total = "" if arm["total"] is None else f"/{arm['total']}"
        known = arm["score"] is not None
        table.add_row(
            Text(arm["arm"]),
            Text(arm["state"]),
            f"{arm['done']}{total}",
            numbers.score(arm["score"]) if known else "-",
            _short_interval(arm["interval"]) if known and arm["interval"] else "-",
            "-" if arm["seconds_left"] is None else numbers.about(arm["seconds_left"]),
        )
    return table


def by_score(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arms of a decision, best first; those without a score last."""
    return sorted(arms, key=lambda arm: (arm["score"] is None, -(arm["score"] or 0), arm["arm"]))


def plain_table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=caption,
        caption_justify="left",
        caption_style="dim",
        header_style="bold",
    )


def _star_means(decision: words.Decision) -> str:
    return "adopted" if decision["verdict"] == "adopt" else "to use meanwhile"


def _short(text: str) -> str:
    return SHORT if text == numbers.NOT_MEASURABLE else text


def _short_interval(bounds: Sequence[float] | None) -> str:
    return SHORT if bounds is None else f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def _short_seconds(value: float | None) -> str:
    """`5m12s`: columns are dear."""
    return SHORT if value is None else numbers.seconds(value).replace("min", "m").replace(" ", "")


def bullet(sentence: str) -> Table:
    return _hanging("-", sentence, 3, justify="right")


def _hanging(head: str, sentence: str, width: int, justify: JustifyMethod = "left") -> Table:
    """A sentence whose lines all begin behind its head."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, justify=justify)
    grid.add_column()
    grid.add_row(head, Text(sentence))
    return grid
