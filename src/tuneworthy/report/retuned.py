"""Old and new base side by side: one HTML file that loads nothing, and a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuneworthy.report import html, numbers, text, words
from tuneworthy.store import RunFolder, mended, read_json, read_jsonl

SHOWN_ROWS = 3
"""Rows of an arm that a terminal shows, at either end; the page has all."""
_SNIPPET = 60
Found = dict[str, Any]
"""The content of `retune.json`."""


def render(run: RunFolder) -> str:
    """The comparison of a retune as HTML, from its run folder alone."""
    from markupsafe import Markup

    found = read_json(run.retune)
    page = html.template("retune.html").render(
        found=found,
        headline=headline(found),
        texts=_texts(run),
        css=Markup(html.asset("report.css")),  # noqa: S704  our own file
    )
    return mended(page)


def headline(found: Found) -> str:
    """The verdict on the new base, without the name of the base."""
    line = words.headline(found["new"])
    return line[0].lower() + line[1:]


def table(found: Found) -> Table:
    """Every arm on both bases, for a terminal."""
    drawn = text.plain_table(
        caption=f"* of the verdict on {found['new']['base']['name']}   "
        f"rows: better/worse than on {found['parent']['base']['name']}"
    )
    drawn.add_column("arm", no_wrap=True)
    for heading in ("old", "new", "new − old", "95 % interval", "Holm p", "rows"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for arm in found["arms"]:
        delta, chosen = arm["delta"], arm["arm"] == found["new"]["arm"]
        drawn.add_row(
            Text(f"{'*' if chosen else ' '} {arm['arm']}"),
            numbers.score(arm["old_score"]),
            numbers.score(arm["new_score"]),
            numbers.signed(delta["value"]) if delta else text.SHORT,
            numbers.signed_interval(delta["interval"]).replace(" to ", "…")
            if delta
            else text.SHORT,
            numbers.p_value(delta["p_holm"]) if delta else text.SHORT,
            f"+{len(arm['better'])}/{numbers.MINUS}{len(arm['worse'])}",
            style="bold" if chosen else None,
        )
    return drawn


def summary(found: Found, run: RunFolder) -> Group:
    """What changed, the rows that changed most, and where the rest stands."""
    lines: list[Any] = [
        Text.assemble(("VERDICT  ", "dim"), (words.verdict_line(found["new"]), "bold")),
        Text(),
    ]
    lines += [text.bullet(sentence) for sentence in found["because"]]
    spent = found["spent"]
    lines.append(
        text.bullet(
            f"Everything again took {numbers.seconds(spent['seconds'])} and "
            f"{numbers.usd(spent['usd'])}."
        )
    )
    lines += [Text(), *_changed(found, _texts(run)), Text()]
    if found["gate"]:
        state = "open" if found["gate"]["open"] else "closed"
        lines.append(Text(f"Gate    {found['gate']['text']}: {state}"))
    for what, name in (("Report", "retune.html"), ("Verdict", "report.html")):
        lines.append(Text(f"{what:7} {run.path / name}", no_wrap=True, overflow="ignore"))
    return Group(*lines)


def _changed(found: Found, texts: dict[str, dict[str, str]]) -> list[Text]:
    lines = []
    for arm, rows in found["rows"].items():
        worse = [row for row in rows if row["new"]["score"] < row["old"]["score"]]
        better = [row for row in rows if row["new"]["score"] > row["old"]["score"]]
        for what, some in (("worse", worse), ("better", better[::-1])):
            for row in some[:SHOWN_ROWS]:
                lines += [
                    Text(f"{what:6}  {arm}, {row['id']}: {_snippet(texts[row['id']]['prompt'])}"),
                    Text(f"        old {row['old']['score']:.3f}  {_snippet(row['old']['text'])}"),
                    Text(f"        new {row['new']['score']:.3f}  {_snippet(row['new']['text'])}"),
                ]
    return lines


def _texts(run: RunFolder) -> dict[str, dict[str, str]]:
    return {
        row["id"]: {
            "prompt": "\n".join(message["content"] for message in row["messages"]),
            "wanted": row["completion"],
        }
        for row in read_jsonl(run.rows)
        if row["split"] == "test"
    }


def _snippet(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= _SNIPPET else f"{line[:_SNIPPET]}…"
