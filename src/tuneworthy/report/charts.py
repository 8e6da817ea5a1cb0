"""Charts as inline SVG, drawn by Altair; colours are CSS variables, so one SVG has both themes."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from tuneworthy.report import numbers

ROW_HEIGHT = 34
LABEL_HEIGHT = 15
"""Pixels; labels of points closer than this are pushed apart."""
LABEL_WIDTH = 110

# A reader's font may be wider than the one that Vega measured.
PADDING = {"left": 26, "right": 12, "top": 4, "bottom": 4}
INK, MUTED, RULE, ACCENT, BAND = (
    "var(--ink)",
    "var(--muted)",
    "var(--rule)",
    "var(--accent)",
    "var(--band)",
)
SCORE_TITLE = "score, with 95 % interval"
SHAPES = {"prompting only": "circle", "trained": "diamond"}
ON_DEV, SEALED, FORESEEN = "on dev rows", "on sealed rows", "forecast"
BY_ROWS = {ON_DEV: (MUTED, "circle"), SEALED: (INK, "diamond"), FORESEEN: (ACCENT, "square")}


def arms_chart(arms: Sequence[dict[str, Any]], adopted: str | None, width: int) -> str:
    """SVG of every arm's score with its 95 % interval, in the order given.

    `arms` are records of `decision.json`; those without a score are left out. "" if none is left.
    """
    import altair as alt

    points = [
        {**_kind(arm), "value": arm["score"], **_bounds(arm["interval"])}
        for arm in arms
        if arm["score"] is not None
    ]
    if not points:
        return ""
    x = alt.X(
        "value:Q",
        title=SCORE_TITLE,
        axis=alt.Axis(format=".2f", tickCount=_ticks(width)),
        scale=alt.Scale(domain=_padded(points), nice=False, zero=False),
    )
    chart = _interval_rows(points, x, SCORE_TITLE, adopted, width, numbers.score)
    best = max(points, key=lambda point: point["value"])
    desc = "; ".join(f"{p['arm']} {p['value']:.3f}" for p in points)
    return _svg(chart, "Score of every arm", f"Highest: {best['arm']}. {desc}.")


def differences_chart(
    arms: Sequence[dict[str, Any]],
    baseline: str | None,
    margin: float,
    adopted: str | None,
    width: int,
) -> str:
    """SVG of the paired differences to the best untrained arm: line at 0, band of the margin."""
    import altair as alt

    points = [
        {
            **_kind(arm),
            "value": arm["delta_vs_best_untrained"]["value"],
            **_bounds(arm["delta_vs_best_untrained"]["interval"]),
        }
        for arm in arms
        if arm["delta_vs_best_untrained"] and arm["delta_vs_best_untrained"]["value"] is not None
    ]
    if not points:
        return ""
    title = f"difference to {baseline}, with 95 % interval"
    low, high = _padded(points, include=(-1.4 * margin, 1.4 * margin, 0))
    x = alt.X(
        "value:Q",
        title=title,
        axis=alt.Axis(format="+.2f", tickCount=_ticks(width)),
        scale=alt.Scale(domain=[low, high], nice=False),
    )
    frame = {"low": -margin, "high": margin, "zero": 0}
    band = (
        alt.Chart(alt.Data(values=[frame]))
        .mark_rect(color=BAND)
        .encode(x=alt.X("low:Q", scale=alt.Scale(domain=[low, high])), x2="high:Q")
    )
    zero = (
        alt.Chart(alt.Data(values=[frame]))
        .mark_rule(color=INK, strokeWidth=1.2)
        .encode(x=alt.X("zero:Q", scale=alt.Scale(domain=[low, high])))
    )
    chart = alt.layer(band, zero, _interval_rows(points, x, title, adopted, width, numbers.signed))
    desc = "; ".join(f"{p['arm']} {numbers.signed(p['value'])}" for p in points)
    return _svg(
        chart,
        f"Paired difference of every arm to {baseline}",
        f"Right of zero is better. The shaded band is the margin of {margin:g}. {desc}.",
    )


def cost_chart(arms: Sequence[dict[str, Any]], adopted: str | None, width: int) -> str:
    """SVG of score against dollars per 1,000 requests; logarithmic if costs differ 20-fold."""
    import altair as alt

    points = [
        {
            **_kind(arm),
            "cost": arm["cost"]["usd_per_1k_requests"],
            "value": arm["score"],
            **_bounds(arm["interval"]),
        }
        for arm in arms
        if arm["score"] is not None and arm["cost"]["usd_per_1k_requests"] is not None
    ]
    if not points:
        return ""
    height = min(320, max(240, width // 2))
    costs = [point["cost"] for point in points]
    log = min(costs) > 0 and max(costs) / min(costs) > 20
    # Room at the right for the labels, which begin at the points.
    room = LABEL_WIDTH / width / (1 - LABEL_WIDTH / width)
    if log:
        start, stop = math.log10(min(costs)) - 0.1, math.log10(max(costs)) + 0.1
        domain = [10**start, 10 ** (stop + (stop - start) * room)]
    else:
        stop = max(costs) * 1.05 or 1.0
        domain = [0.0, stop * (1 + room)]
    x_scale = alt.Scale(type="log" if log else "linear", domain=domain, nice=False)
    low, high = _padded(points)
    _push_labels_apart(points, domain, (low, high), (width, height), log)
    x = alt.X(
        "cost:Q",
        title="US dollars per 1,000 requests" + (" (logarithmic)" if log else ""),
        scale=x_scale,
        axis=alt.Axis(format="$~g", tickCount=_ticks(width), labelFlush=False),
    )
    y = alt.Y(
        "value:Q",
        title=SCORE_TITLE,
        scale=alt.Scale(domain=[low, high], nice=False, zero=False),
        axis=alt.Axis(format=".2f", tickCount=5),
    )
    color = _emphasis(alt, points, adopted)
    base = alt.Chart(alt.Data(values=points), width=width, height=height)
    whiskers = base.mark_rule(color=MUTED, strokeWidth=1).encode(
        x=x, y=alt.Y("low:Q", title=SCORE_TITLE), y2="high:Q"
    )
    dots = base.mark_point(size=90, filled=True, opacity=1).encode(
        x=x, y=y, color=color, shape=_shape(alt)
    )
    labels = base.mark_text(
        align="left", dx=9, fontSize=12, fontWeight=alt.ExprRef(_bold_if("datum.arm", adopted))
    ).encode(x=x, y=alt.Y("label_at:Q", title=SCORE_TITLE), text="arm:N", color=color)
    desc = "; ".join(f"{p['arm']} ${p['cost']:.2g}, {p['value']:.3f}" for p in points)
    return _svg(
        alt.layer(whiskers, dots, labels),
        "Cost against quality",
        f"Up is better, left is cheaper. {desc}.",
    )


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten among positive values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]


def learning_chart(name: str, history: Sequence[dict[str, float]], width: int) -> str:
    """SVG of a training arm's loss by step: training dashed, dev solid with points.

    Logarithmic if losses differ 5-fold: that of weights not trained yet would flatten the rest.
    """
    import altair as alt

    lines: list[dict[str, Any]] = [
        {"step": entry["step"], "loss": entry[key], "line": line}
        for entry in history
        for key, line in (("loss", "training rows"), ("dev_loss", "dev rows"))
        if key in entry and entry[key] is not None
    ]
    if not lines:
        return ""
    order = ["training rows", "dev rows"]
    losses = [entry["loss"] for entry in lines]
    log = min(losses) > 0 and max(losses) / min(losses) > 5
    base = alt.Chart(alt.Data(values=lines), width=width, height=200).encode(
        x=alt.X(
            "step:Q",
            title="training step",
            axis=alt.Axis(tickMinStep=1, format="d", tickCount=_ticks(width)),
        ),
        y=alt.Y(
            "loss:Q",
            title="loss (nats per token" + (", logarithmic)" if log else ")"),
            scale=alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False),
            axis=alt.Axis(
                format="~g", **{"values": _log_ticks(losses)} if log else {"tickCount": 5}
            ),
        ),
    )
    legend = alt.Legend(symbolType="stroke", symbolSize=500)
    strokes = base.mark_line(strokeWidth=1.8).encode(
        color=alt.Color(
            "line:N",
            title=None,
            scale=alt.Scale(domain=order, range=[MUTED, ACCENT]),
            legend=legend,
        ),
        strokeDash=alt.StrokeDash(
            "line:N",
            title=None,
            scale=alt.Scale(domain=order, range=[[5, 4], [1, 0]]),
            legend=legend,
        ),
    )
    dots = base.mark_point(filled=True, size=36, opacity=1, color=ACCENT).transform_filter(
        "datum.line == 'dev rows'"
    )
    dev = [entry["loss"] for entry in lines if entry["line"] == "dev rows"]
    desc = f"Lowest dev loss {min(dev):.3f}." if dev else "No dev loss was measured."
    return _svg(alt.layer(strokes, dots), f"Loss while {name} was trained", desc)


def rows_chart(
    arm: str,
    on_dev: Sequence[tuple[int, float]],
    sealed: tuple[int, float] | None,
    forecast: dict[str, Any] | None,
    rival: tuple[str, float] | None,
    width: int,
) -> str:
    """SVG of a score by training rows: parts of them on dev, all of them on the sealed rows.

    `forecast` is a line of `decision.json`; `rival` the best arm without training and its score.
    "" if there is neither a forecast nor a second point.
    """
    import altair as alt

    points = _by_rows(on_dev, sealed, forecast)
    if len(points) < 2:
        return ""
    rows = [point["rows"] for point in points]
    low, high = _padded(points, include=[rival[1]] if rival else [])
    x = alt.X(
        "rows:Q",
        title="training rows (logarithmic)",
        scale=alt.Scale(type="log", domain=[min(rows) / 1.25, max(rows) * 1.25], nice=False),
        axis=alt.Axis(values=sorted(set(rows)), format=",d", grid=False, labelOverlap=True),
    )
    y = alt.Y(
        "value:Q",
        title="score",
        scale=alt.Scale(domain=[max(0.0, low), min(1.0, high)], nice=False),
        axis=alt.Axis(format=".2f", tickCount=5),
    )
    base = alt.Chart(alt.Data(values=points), width=width, height=200).encode(x=x)
    kinds = list(BY_ROWS)
    colors, shapes = zip(*BY_ROWS.values(), strict=True)
    how: dict[str, Any] = {"title": None, "legend": alt.Legend(symbolSize=70)}
    layers = [
        base.transform_filter(f"datum.what != '{FORESEEN}'")
        .mark_line(color=MUTED, strokeWidth=1.2)
        .encode(y=y),
        base.mark_rule(color=ACCENT, strokeWidth=2.2).encode(
            y=alt.Y("low:Q", title="score"), y2="high:Q"
        ),
        base.mark_point(filled=True, size=80, opacity=1, strokeWidth=2.2).encode(
            y=y,
            color=alt.Color("what:N", scale=alt.Scale(domain=kinds, range=colors), **how),
            shape=alt.Shape("what:N", scale=alt.Scale(domain=kinds, range=shapes), **how),
        ),
    ]
    if rival:
        level = alt.Chart(alt.Data(values=[{"value": rival[1], "rows": min(rows) / 1.2}]))
        label = level.mark_text(align="left", dy=-7, fontSize=11, color=INK, text=rival[0])
        layers += [
            level.mark_rule(color=INK, strokeDash=[5, 4]).encode(y="value:Q"),
            label.encode(x=x, y="value:Q"),
        ]
    desc = "; ".join(f"{p['rows']:,} rows {p['value']:.3f} ({p['what']})" for p in points)
    against = f" {rival[0]}, the best arm without training, has {rival[1]:.3f}." if rival else ""
    return _svg(alt.layer(*layers), f"Score of {arm} by training rows", f"{desc}.{against}")


def _by_rows(
    on_dev: Sequence[tuple[int, float]],
    sealed: tuple[int, float] | None,
    forecast: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    known = [(ON_DEV, *point) for point in on_dev] + ([(SEALED, *sealed)] if sealed else [])
    points = [
        {"what": what, "rows": rows, "value": value, **_bounds(None)} for what, rows, value in known
    ]
    if forecast:
        foreseen = {"what": FORESEEN, "rows": forecast["rows"], "value": forecast["predicted"]}
        points.append({**foreseen, **_bounds(forecast["interval"])})
    return points


def _interval_rows(
    points: list[dict[str, Any]],
    x: Any,
    title: str,
    adopted: str | None,
    width: int,
    write: Callable[[float], str],
) -> Any:
    """One row an arm: interval, point, and the number above the point."""
    import altair as alt

    for point in points:
        point["label"] = write(point["value"])
    y = alt.Y(
        "arm:N",
        title=None,
        sort=[point["arm"] for point in points],
        axis=alt.Axis(
            labelFontSize=12,
            labelFontWeight=alt.ExprRef(_bold_if("datum.value", adopted)),
            labelPadding=8,
            labelLimit=160,
            ticks=False,
            domain=False,
            grid=True,
        ),
    )
    base = alt.Chart(alt.Data(values=points), width=width, height=ROW_HEIGHT * len(points)).encode(
        y=y
    )
    color = _emphasis(alt, points, adopted)
    return alt.layer(
        base.mark_rule(strokeWidth=2.2).encode(
            x=alt.X("low:Q", title=title), x2="high:Q", color=color
        ),
        base.mark_point(size=90, filled=True, opacity=1).encode(
            x=x, color=color, shape=_shape(alt)
        ),
        base.mark_text(dy=-11, fontSize=11).encode(x=x, text="label:N", color=color),
    )


def _ticks(width: int) -> int:
    return max(3, width // 100)


def _kind(arm: dict[str, Any]) -> dict[str, str]:
    return {"arm": arm["arm"], "kind": "trained" if arm["trained"] else "prompting only"}


def _bounds(interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _padded(points: list[dict[str, Any]], include: Sequence[float] = ()) -> list[float]:
    """Smallest range that holds every value and bound, and a twentieth more on both sides."""
    values = [p[key] for p in points for key in ("low", "value", "high") if p[key] is not None]
    low, high = min([*values, *include]), max([*values, *include])
    room = (high - low) * 0.06 or 0.05
    return [low - room, high + room]


def _push_labels_apart(
    points: list[dict[str, Any]],
    x_domain: Sequence[float],
    y_domain: Sequence[float],
    size: tuple[int, int],
    log: bool,
) -> None:
    """Set `label_at`, a score to write the name at, so that no two names lie on each other."""

    def across(cost: float) -> float:
        scale = math.log10 if log else float
        start, stop = scale(x_domain[0]), scale(x_domain[1])
        return (scale(cost) - start) / (stop - start) * size[0]

    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: -point["value"]):
        left = across(point["cost"])
        wanted = (y_domain[1] - point["value"]) / (y_domain[1] - y_domain[0]) * size[1]
        top = wanted
        for other_left, other_top in sorted(placed, key=lambda place: place[1]):
            if abs(left - other_left) < LABEL_WIDTH and abs(top - other_top) < LABEL_HEIGHT:
                top = other_top + LABEL_HEIGHT
        placed.append((left, top))
        point["label_at"] = y_domain[1] - top / size[1] * (y_domain[1] - y_domain[0])


def _emphasis(alt: Any, points: list[dict[str, Any]], adopted: str | None) -> Any:
    arms = [point["arm"] for point in points]
    colors = [ACCENT if arm == adopted else INK for arm in arms]
    return alt.Color("arm:N", scale=alt.Scale(domain=arms, range=colors), legend=None)


def _bold_if(value: str, adopted: str | None) -> str:
    return f"{value} === {json.dumps(adopted)} ? 'bold' : 'normal'"


def _shape(alt: Any) -> Any:
    return alt.Shape(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())),
        legend=alt.Legend(symbolFillColor=INK, symbolStrokeColor=INK, symbolSize=70),
    )


def _svg(chart: Any, title: str, description: str) -> str:
    """The chart as an `<svg>` with text alternatives and nothing that is loaded."""
    import vl_convert

    spec = chart.configure(background="transparent", padding=PADDING).to_dict(validate=False)
    spec["config"] |= {
        "view": {"stroke": None},
        "axis": {
            "labelColor": MUTED,
            "titleColor": MUTED,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "titlePadding": 8,
            "labelFontSize": 11,
            "gridColor": RULE,
            "domainColor": RULE,
            "tickColor": RULE,
        },
        "legend": {
            "orient": "top",
            "labelColor": MUTED,
            "labelFontSize": 12,
            "offset": 10,
            "columnPadding": 28,
        },
    }
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    opening = re.match(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", drawn)
    assert opening, "vl-convert draws one svg"
    body = drawn[opening.end() :]
    # One picture with one description: the parts' own labels would be read out one by one.
    body = re.sub(r' (?:role|aria-[a-z]+|pointer-events|font-family)="[^"]*"', "", body)
    body = re.sub(r'<path class="(?:background|foreground)"[^>]*/>', "", body)
    width = opening[1].split()[2]
    return (
        f'<svg viewBox="{opening[1]}" style="max-width:{width}px" role="img" fill="none">'
        f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>{body}"
    )
