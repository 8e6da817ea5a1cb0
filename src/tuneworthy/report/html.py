"""The report: one HTML file that loads nothing, made from a run folder alone."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from tuneworthy.report import charts, numbers, words
from tuneworthy.report.reading import RunRecords, drops, mean, mean_score, read_run, tallies
from tuneworthy.report.text import by_score
from tuneworthy.store import RunFolder, mended

WIDE, NARROW = 780, 240
"""Pixels of a chart's plot on a desk and on a phone."""
EMBEDDED_CHARACTERS = 4_000_000
"""Texts of rows and answers that the file may hold; beyond this the longest are cut."""
LONGEST_TEXT, SHORTEST_CUT = 6_000, 200

Figure = dict[str, str]


FILTERS = {
    "score": numbers.score,
    "signed": numbers.signed,
    "interval": numbers.interval,
    "signed_interval": numbers.signed_interval,
    "p_value": numbers.p_value,
    "count": numbers.count,
    "usd": numbers.usd,
    "seconds": numbers.seconds,
    "about": numbers.about,
    "memory": numbers.memory,
    "share": numbers.share,
    "plural": numbers.plural,
}
"""How templates write numbers."""


def render(run: RunFolder) -> str:
    """The report of a run as HTML; of an unfinished one, what stands so far.

    Pure: reads the run folder and nothing else. Raises StorageError if `config.json` is missing
    or a file is torn.
    """
    from markupsafe import Markup

    records = read_run(run)
    script = asset("report.js")
    page = template("template.html").render(
        **_context(records),
        css=Markup(asset("report.css")),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rows_json=Markup(json_for_html(rows_payload(records))),  # noqa: S704  escaped
    )
    return mended(page)


def sections(records: RunRecords, rows_at: str) -> dict[str, str]:
    """The report's sections by name, for a page that has a frame of its own; "" where there is none.

    `rows_at` is the address at which rows are read side by side.
    """
    page = template("template.html")
    empty = dict.fromkeys(("css", "script", "script_hash", "rows_json"), "")
    context = page.new_context({**_context(records), **empty, "rows_at": rows_at})
    # Blocks use macros that only the whole template defines.
    for _ in page.root_render_func(context):
        pass
    return {name: mended("".join(block(context))).strip() for name, block in page.blocks.items()}


@cache
def template(name: str) -> Any:
    """One of this package's templates, with the filters that it writes numbers with."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**FILTERS, "plain": plain, "cut": cut}
    return environment.get_template(name)


def json_for_html(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def rows_payload(records: RunRecords) -> dict[str, Any]:
    """The test rows with every arm's answer; see the reader in `report.js`.

    {"arms": [name], "rows": [{"id", "source", "prompt": [[role, content]], "wanted",
    "answers": [[text, score, parsed, failure, output_tokens, finish_reason] | null]}]}
    """
    texts = [
        len(text)
        for row in records.test_rows
        for text in [row["completion"], *(message["content"] for message in row["messages"])]
    ] + [len(line["text"]) for arm in records.arms for line in arm.predictions.values()]
    limit = LONGEST_TEXT
    if sum(min(length, limit) for length in texts) > EMBEDDED_CHARACTERS:
        limit = max(SHORTEST_CUT, EMBEDDED_CHARACTERS // len(texts))
    shown = [arm for arm in records.arms if arm.predictions]
    return {
        "arms": [arm.name for arm in shown],
        "rows": [
            {
                "id": row["id"],
                "source": row["source"],
                "prompt": [[m["role"], cut(m["content"], limit)] for m in row["messages"]],
                "wanted": cut(row["completion"], limit),
                "answers": [_answer(arm.predictions.get(row["id"]), limit) for arm in shown],
            }
            for row in records.test_rows
        ],
    }


def plain(value: Any) -> str:
    """A setting's or a machine's value in one string."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        return cut(value, LONGEST_TEXT)
    if isinstance(value, float):
        return f"{value:.6g}"
    return cut(json.dumps(value, ensure_ascii=False), LONGEST_TEXT)


def _answer(line: dict[str, Any] | None, limit: int) -> list[Any] | None:
    if line is None:
        return None
    return [
        cut(line["text"], limit),
        line["score"],
        line["parsed"],
        line["failure"],
        line["output_tokens"],
        line["finish_reason"],
    ]


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and end with what was left out between."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    left_out = len(text) - head - tail
    return (
        f"{text[:head]}\n[… {left_out:,} characters left out here; "
        f"the run folder has the whole text …]\n{text[-tail:]}"
    )


def _context(records: RunRecords) -> dict[str, Any]:
    decision = records.decision
    split_sizes = records.config["data"]["rows"]
    context: dict[str, Any] = {
        "run": records,
        "config": records.config,
        "decision": decision,
        "finished": decision is not None,
        "noise": [],
        "by_rows": [],
        "split_sizes": split_sizes,
        "dropped": drops(records.ledger),
        "kept": sum(1 for line in records.ledger if line["split"]),
        "truncated": sum(1 for line in records.ledger if line["truncated"]),
        "fits": [(arm.name, arm.fit) for arm in records.arms if arm.fit],
        "tallies": tallies([arm for arm in records.arms if arm.predictions]),
        "compared": [arm.name for arm in records.arms if arm.predictions],
        "curves": _curves(records),
        "so_far": [
            {
                "arm": arm.name,
                "done": len(arm.predictions),
                "score": mean_score(arm),
                "failures": sum(1 for p in arm.predictions.values() if p["failure"] is not None),
                "unparsed": sum(
                    1 for p in arm.predictions.values() if p["failure"] is None and not p["parsed"]
                ),
            }
            for arm in records.arms
        ],
        "pair": first_pair(records),
        "rows_at": "",
        "figured": [(arm.name, arm.figures) for arm in records.arms if arm.figures],
        "likely": any("likelihood" in (arm.figures or {}) for arm in records.arms),
    }
    if decision is not None:
        context |= _verdict(decision)
        context["by_rows"] = _by_rows(records, decision)
    return context


def _verdict(decision: dict[str, Any]) -> dict[str, Any]:
    arms = by_score(decision["arms"])
    adopted = decision["arm"]
    return {
        "arms": arms,
        "headline": words.headline(decision),
        "badge": words.BADGES[decision["verdict"]],
        "confidence": words.confidence(decision),
        "next_step": words.next_step(decision),
        "break_even": words.break_even(decision),
        "figures": _figures(decision),
        "noise": words.noise(decision),
        "debt_names": words.DEBT,
        "debts": _debts(decision["debt"]),
        "charts": {
            "arms": _both(charts.arms_chart, arms, adopted),
            "differences": _both(
                charts.differences_chart,
                arms,
                decision["best_untrained"],
                decision["margin"],
                adopted,
            ),
            "cost": _both(charts.cost_chart, arms, adopted),
        },
    }


def _debts(debt: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """The recommended arm first, then its alternatives."""
    return [(debt["arm"], debt), *debt["alternatives"].items()] if debt else []


def _both(draw: Any, *arguments: Any) -> dict[str, str] | None:
    """A chart for wide and one for narrow pages; None if there is nothing to draw."""
    from markupsafe import Markup

    drawn = {name: draw(*arguments, width) for name, width in (("wide", WIDE), ("narrow", NARROW))}
    # Texts in it are escaped by what draws it.
    return {name: Markup(svg) for name, svg in drawn.items()} if drawn["wide"] else None  # noqa: S704


def _curves(records: RunRecords) -> list[tuple[str, dict[str, str]]]:
    found = []
    for arm in records.arms:
        training = arm.fit["training"] if arm.fit else None
        if training and training["history"]:
            start = {"step": 0, "dev_loss": training["dev_loss_before"]}
            history = charts.with_losses([start, *training["history"]], arm.learned)
            chart = _both(charts.learning_chart, arm.name, history)
            if chart:
                found.append((arm.name, chart))
    return found


def _by_rows(records: RunRecords, decision: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """A chart of each arm that was trained on parts of the rows: would more of them help?"""
    scores = {arm["arm"]: arm["score"] for arm in decision["arms"]}
    best = decision["best_untrained"]
    rival = None if scores.get(best) is None else (best, scores[best])
    found = []
    for arm in records.arms:
        steps = sorted((step["rows"], mean(step["dev_scores"])) for step in arm.steps)
        on_dev = [(rows, score) for rows, score in steps if score is not None]
        score, train_rows = scores.get(arm.name), records.config["data"]["rows"]["train"]
        forecast = [
            line
            for line in decision["forecast"]
            if line["arm"] == arm.name and line["of"] == "score" and line["interval"]
        ]
        sealed = None if score is None else (train_rows, score)
        last = forecast[-1] if forecast else None
        chart = on_dev and _both(charts.rows_chart, arm.name, on_dev, sealed, last, rival)
        if chart:
            found.append((arm.name, chart))
    return found


def _figures(decision: dict[str, Any]) -> list[Figure]:
    """The four numbers to remember."""
    figures = []
    if decision["arm"] is not None:
        arm = words.arm_of(decision, decision["arm"])
        figures.append(
            {
                "label": f"Score of {arm['arm']} ({decision['metric']})",
                "value": numbers.score(arm["score"]),
                "note": f"95 % interval {numbers.interval(arm['interval'])}",
            }
        )
    trained = [arm for arm in by_score(decision["arms"]) if arm["trained"]]
    if trained and trained[0]["delta_vs_best_untrained"]:
        delta = trained[0]["delta_vs_best_untrained"]
        figures.append(
            {
                "label": f"{trained[0]['arm']} against {decision['best_untrained']}",
                "value": numbers.signed(delta["value"]),
                "note": f"95 % interval {numbers.signed_interval(delta['interval'])}",
            }
        )
    if decision["arm"] is not None:
        figures.append(
            {
                "label": f"1,000 requests to {arm['arm']}",
                "value": numbers.usd(arm["cost"]["usd_per_1k_requests"]),
                "note": "from measured seconds and tokens, at your prices",
            }
        )
    figures.append(
        {
            "label": "Smallest gap this test sees",
            "value": numbers.score(decision["smallest_detectable_difference"]),
            "note": "estimate, 80 % power",
        }
    )
    return figures


def first_pair(records: RunRecords) -> tuple[int, int]:
    """Positions of the two arms that the row browser compares first: adopted and its rival."""
    names = [arm.name for arm in records.arms if arm.predictions]
    if len(names) < 2:
        return (0, 0)
    if records.decision is None or records.decision["arm"] not in names:
        return (0, 1)
    adopted = records.decision["arm"]
    trained = {arm["arm"]: arm["trained"] for arm in records.decision["arms"]}
    others = [name for name in names if name != adopted]
    # The question is training against prompting: the rival is the best of the other kind.
    rival = next((n for n in others if trained.get(n) != trained.get(adopted)), others[0])
    return (names.index(adopted), names.index(rival))


def asset(name: str) -> str:
    """One of this package's own files."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
