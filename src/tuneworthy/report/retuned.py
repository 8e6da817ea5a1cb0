"""Old and new base side by side: one HTML file that loads nothing, and a table for a terminal."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuneworthy.report import html, numbers, text, words
from tuneworthy.store import RunFolder, read_json, read_jsonl

LONGEST_TEXT = 3_000
SHOWN_ROWS = 3
"""Rows of an arm that a terminal shows, at either end; the page has all."""
_SNIPPET = 60
Found = dict[str, Any]
"""The content of `retune.json`."""

_DIFFERENCE = (
    "{% macro difference(delta) %}"
    '{% if delta %}<td class="n">{{ delta.value | signed }}<small>{{ delta.interval | '
    'signed_interval }}</small></td><td class="n">{{ delta.p_holm | p_value }}</td>'
    '{% else %}<td class="n">not measurable</td><td class="n">–</td>{% endif %}{% endmacro %}'
)


def render(run: RunFolder) -> str:
    """The comparison of a retune as HTML, from its run folder alone."""
    import jinja2
    from markupsafe import Markup

    found = read_json(run.retune)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "score": numbers.score,
        "signed": numbers.signed,
        "interval": numbers.interval,
        "signed_interval": numbers.signed_interval,
        "p_value": numbers.p_value,
        "usd": numbers.usd,
        "seconds": numbers.seconds,
        "plural": numbers.plural,
        "cut": _cut,
    }
    page = environment.from_string(_DIFFERENCE + html.asset("retune.html")).render(
        found=found,
        headline=headline(found),
        texts=_texts(run),
        css=Markup(html.asset("report.css")),  # noqa: S704  our own file
    )
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page)


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


def _cut(value: str, limit: int = LONGEST_TEXT) -> str:
    return value if len(value) <= limit else f"{value[:limit]}\n[… {len(value) - limit:,} more …]"
