"""What the charts of a report show."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tuneworthy.report import numbers
from tuneworthy.report.drawing import ACCENT, BAND, INK, MUTED, Spec, field, layer, plot, svg

ROW_HEIGHT = 34
LABEL_HEIGHT = 15
"""Pixels; labels of points closer than this are pushed apart."""
LABEL_WIDTH = 110
TRAINING_POINTS = 24
"""Of a training's loss between its evaluations."""

SCORE_TITLE = "score, with 95 % interval"
UNTRAINED, TRAINED = "prompting only", "trained"
ON_DEV, SEALED, FORESEEN = "on dev rows", "on sealed rows", "forecast"
TRAINING_ROWS, DEV_ROWS = "training rows", "dev rows"
BY_ROWS = {ON_DEV: (MUTED, "circle"), SEALED: (INK, "diamond"), FORESEEN: (ACCENT, "square")}
DOT = {"size": 90, "filled": True, "opacity": 1}
SHAPE: Spec = {
    "field": "kind",
    "type": "nominal",
    "title": None,
    "scale": {"domain": [UNTRAINED, TRAINED], "range": ["circle", "diamond"]},
    "legend": {"symbolFillColor": INK, "symbolStrokeColor": INK, "symbolSize": 70},
}


def arms_chart(arms: Sequence[dict[str, Any]], adopted: str | None, width: int) -> str:
    """SVG of every arm's score with its 95 % interval, in the order given.

    `arms` are records of `decision.json`; those without a score are left out. "" if none is left.
    """
    points = [
        {**_kind(arm), "value": arm["score"], **_bounds(arm["interval"])}
        for arm in arms
        if arm["score"] is not None
    ]
    if not points:
        return ""
    x = field(
        "value",
        SCORE_TITLE,
        axis={"format": ".2f", "tickCount": _ticks(width)},
        scale={"domain": _padded(points), "nice": False, "zero": False},
    )
    chart = _interval_rows(points, x, adopted, width, numbers.score)
    best = max(points, key=lambda point: point["value"])
    desc = "; ".join(f"{p['arm']} {p['value']:.3f}" for p in points)
    return svg(chart, "Score of every arm", f"Highest: {best['arm']}. {desc}.")


def differences_chart(
    arms: Sequence[dict[str, Any]],
    baseline: str | None,
    margin: float,
    adopted: str | None,
    width: int,
) -> str:
    """SVG of the paired differences to the best untrained arm: line at 0, band of the margin."""
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
    x = field(
        "value",
        title,
        axis={"format": "+.2f", "tickCount": _ticks(width)},
        scale={"domain": [low, high], "nice": False},
    )
    frame: Spec = {
        "data": {"values": [{"low": -margin, "high": margin, "zero": 0}]},
        "layer": [
            layer("rect", {"color": BAND}, x=field("low", scale=x["scale"]), x2={"field": "high"}),
            layer("rule", {"color": INK, "strokeWidth": 1.2}, x=field("zero", scale=x["scale"])),
        ],
    }
    chart = _interval_rows(points, x, adopted, width, numbers.signed)
    chart["layer"] = [frame, *chart["layer"]]
    desc = "; ".join(f"{p['arm']} {numbers.signed(p['value'])}" for p in points)
    return svg(
        chart,
        f"Paired difference of every arm to {baseline}",
        f"Right of zero is better. The shaded band is the margin of {margin:g}. {desc}.",
    )


def cost_chart(arms: Sequence[dict[str, Any]], adopted: str | None, width: int) -> str:
    """SVG of score against dollars per 1,000 requests; logarithmic if costs differ 20-fold."""
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
    low, high = _padded(points)
    _push_labels_apart(points, domain, (low, high), (width, height), log)
    lowest, room = min(p["label_at"] for p in points), LABEL_HEIGHT * (high - low) / height
    if lowest < low + room / 2:  # names that were pushed below the points have room as well
        low = lowest - room
        _push_labels_apart(points, domain, (low, high), (width, height), log)
    x = field(
        "cost",
        "US dollars per 1,000 requests" + (" (logarithmic)" if log else ""),
        scale={"type": "log" if log else "linear", "domain": domain, "nice": False},
        axis={"format": "$~g", "tickCount": _ticks(width), "labelFlush": False},
    )
    y = field(
        "value",
        SCORE_TITLE,
        scale={"domain": [low, high], "nice": False, "zero": False},
        axis={"format": ".2f", "tickCount": 5},
    )
    color = _emphasis(points, adopted)
    name = {"align": "left", "dx": 9, "fontSize": 12, "fontWeight": _bold_if("datum.arm", adopted)}
    title, low_y = {"field": "arm", "type": "nominal"}, field("low", SCORE_TITLE)
    layers = [
        layer("rule", {"color": MUTED, "strokeWidth": 1}, x=x, y=low_y, y2={"field": "high"}),
        layer("point", DOT, x=x, y=y, color=color, shape=SHAPE),
        layer("text", name, x=x, y=field("label_at", SCORE_TITLE), text=title, color=color),
    ]
    desc = "; ".join(f"{p['arm']} ${p['cost']:.2g}, {p['value']:.3f}" for p in points)
    return svg(
        plot(points, width, height, layers),
        "Cost against quality",
        f"Up is better, left is cheaper. {desc}.",
    )


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten among positive values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]


def with_losses(
    history: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Evaluations of a training with the loss of its steps between them, as means of a few each.

    `steps` are lines of its log; without any the history stays as it is.
    """
    size = math.ceil(len(steps) / TRAINING_POINTS)
    parts = [steps[i : i + size] for i in range(0, len(steps), size)] if steps else []
    means = [
        {"step": part[-1]["step"], "loss": statistics.fmean(line["loss"] for line in part)}
        for part in parts
    ]
    judged = [{k: v for k, v in point.items() if k != "loss"} for point in history]
    return [*judged, *means] if means else list(history)


def learning_chart(name: str, history: Sequence[dict[str, float]], width: int) -> str:
    """SVG of a training arm's loss by step: training dashed, dev solid with points.

    Logarithmic if losses differ 5-fold: that of weights not trained yet would flatten the rest.
    """
    lines: list[dict[str, Any]] = [
        {"step": entry["step"], "loss": entry[key], "line": line}
        for entry in history
        for key, line in (("loss", TRAINING_ROWS), ("dev_loss", DEV_ROWS))
        if key in entry and entry[key] is not None
    ]
    if not lines:
        return ""
    losses = [entry["loss"] for entry in lines]
    log = min(losses) > 0 and max(losses) / min(losses) > 5
    marks = {"values": _log_ticks(losses)} if log else {"tickCount": 5}
    x = field(
        "step", "training step", axis={"tickMinStep": 1, "format": "d", "tickCount": _ticks(width)}
    )
    y = field(
        "loss",
        "loss (nats per token" + (", logarithmic)" if log else ")"),
        scale={"type": "log", "nice": False} if log else {"zero": False},
        axis={"format": "~g", **marks},
    )
    dots = {"filled": True, "size": 36, "opacity": 1, "color": ACCENT}
    layers = [
        layer(
            "line",
            {"strokeWidth": 1.8},
            color=_line([MUTED, ACCENT]),
            strokeDash=_line([[5, 4], [1, 0]]),
        ),
        {"transform": [{"filter": f"datum.line == '{DEV_ROWS}'"}], **layer("point", dots)},
    ]
    chart = plot(lines, width, 200, layers, x=x, y=y)
    dev = [entry["loss"] for entry in lines if entry["line"] == DEV_ROWS]
    desc = f"Lowest dev loss {min(dev):.3f}." if dev else "No dev loss was measured."
    return svg(chart, f"Loss while {name} was trained", desc)


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
    points = _by_rows(on_dev, sealed, forecast)
    if len(points) < 2:
        return ""
    rows = [point["rows"] for point in points]
    low, high = _padded(points, include=[rival[1]] if rival else [])
    x = field(
        "rows",
        "training rows (logarithmic)",
        scale={"type": "log", "domain": [min(rows) / 1.25, max(rows) * 1.25], "nice": False},
        axis={"values": sorted(set(rows)), "format": ",d", "grid": False, "labelOverlap": True},
    )
    y = field(
        "value",
        "score",
        scale={"domain": [max(0.0, low), min(1.0, high)], "nice": False},
        axis={"format": ".2f", "tickCount": 5},
    )
    colors, shapes = zip(*BY_ROWS.values(), strict=True)
    dots = {"filled": True, "size": 80, "opacity": 1, "strokeWidth": 2.2}
    measured = {"transform": [{"filter": f"datum.what != '{FORESEEN}'"}]}
    band = {"y": field("low", "score"), "y2": {"field": "high"}}
    layers = [
        measured | layer("line", {"color": MUTED, "strokeWidth": 1.2}, x=x, y=y),
        layer("rule", {"color": ACCENT, "strokeWidth": 2.2}, x=x, **band),
        layer("point", dots, x=x, y=y, color=_what(colors), shape=_what(shapes)),
    ]
    if rival:
        layers += _level(*rival, at=min(rows) / 1.2, x=x)
    desc = "; ".join(f"{p['rows']:,} rows {p['value']:.3f} ({p['what']})" for p in points)
    against = f" {rival[0]}, the best arm without training, has {rival[1]:.3f}." if rival else ""
    return svg(
        plot(points, width, 200, layers), f"Score of {arm} by training rows", f"{desc}.{against}"
    )


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


def _level(name: str, score: float, at: float, x: Spec) -> list[Spec]:
    """A line right across at the score of one arm, with its name above it."""
    data = {"data": {"values": [{"value": score, "rows": at}]}}
    y = field("value")
    label = {"align": "left", "dy": -7, "fontSize": 11, "color": INK, "text": name}
    return [
        data | layer("rule", {"color": INK, "strokeDash": [5, 4]}, y=y),
        data | layer("text", label, x=x, y=y),
    ]


def _interval_rows(
    points: list[dict[str, Any]],
    x: Spec,
    adopted: str | None,
    width: int,
    write: Callable[[float], str],
) -> Spec:
    """One row an arm: interval, point, and the number above the point."""
    for point in points:
        point["label"] = write(point["value"])
    y: Spec = {
        "field": "arm",
        "type": "nominal",
        "title": None,
        "sort": [point["arm"] for point in points],
        "axis": {
            "labelFontSize": 12,
            "labelFontWeight": _bold_if("datum.value", adopted),
            "labelPadding": 8,
            "labelLimit": 160,
            "ticks": False,
            "domain": False,
            "grid": True,
        },
    }
    color = _emphasis(points, adopted)
    low, label = field("low", x["title"]), {"field": "label", "type": "nominal"}
    layers = [
        layer("rule", {"strokeWidth": 2.2}, x=low, x2={"field": "high"}, y=y, color=color),
        layer("point", DOT, x=x, y=y, color=color, shape=SHAPE),
        layer("text", {"dy": -11, "fontSize": 11}, x=x, y=y, color=color, text=label),
    ]
    return plot(points, width, ROW_HEIGHT * len(points), layers)


def _line(looks: list[Any]) -> Spec:
    """How the two lines of a training look, training rows first."""
    return {
        "field": "line",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [TRAINING_ROWS, DEV_ROWS], "range": looks},
        "legend": {"symbolType": "stroke", "symbolSize": 500},
    }


def _what(looks: Sequence[str]) -> Spec:
    """How points look that were measured on dev, on the sealed rows, or foreseen."""
    return {
        "field": "what",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(BY_ROWS), "range": looks},
        "legend": {"symbolSize": 70},
    }


def _ticks(width: int) -> int:
    return max(3, width // 100)


def _kind(arm: dict[str, Any]) -> dict[str, str]:
    return {"arm": arm["arm"], "kind": TRAINED if arm["trained"] else UNTRAINED}


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


def _emphasis(points: list[dict[str, Any]], adopted: str | None) -> Spec:
    arms = [point["arm"] for point in points]
    colors = [ACCENT if arm == adopted else INK for arm in arms]
    scale = {"domain": arms, "range": colors}
    return {"field": "arm", "type": "nominal", "scale": scale, "legend": None}


def _bold_if(value: str, adopted: str | None) -> Spec:
    return {"expr": f"{value} === {json.dumps(adopted)} ? 'bold' : 'normal'"}
