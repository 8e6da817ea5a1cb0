"""Vega-Lite specifications drawn as inline SVG; colours are CSS variables: one SVG has both themes."""

from __future__ import annotations

import html
import re
from typing import Any

Spec = dict[str, Any]
"""A Vega-Lite specification or a part of one."""

# A reader's font may be wider than the one that Vega measured.
PADDING = {"left": 26, "right": 12, "top": 4, "bottom": 4}
INK, MUTED, RULE, ACCENT, BAND = (
    "var(--ink)",
    "var(--muted)",
    "var(--rule)",
    "var(--accent)",
    "var(--band)",
)
CONFIG: Spec = {
    "background": "transparent",
    "padding": PADDING,
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
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.4.1.json"


def field(name: str, title: str | None = None, **how: Any) -> Spec:
    """A quantity on one of the axes."""
    titled = {} if title is None else {"title": title}
    return {"field": name, "type": "quantitative", **titled, **how}


def layer(mark: str, look: Spec, **encoding: Spec) -> Spec:
    """One kind of mark, how it looks, and which fields place it."""
    return {"mark": {"type": mark, **look}, "encoding": encoding}


def plot(values: list[Spec], width: int, height: int, layers: list[Spec], **shared: Spec) -> Spec:
    """Layers over the same values, and what places all of them; pixels without axes and legend."""
    size = {"width": width, "height": height}
    return {"data": {"values": values}, **size, "encoding": shared, "layer": layers}


def svg(chart: Spec, title: str, description: str) -> str:
    """The chart as an `<svg>` with text alternatives and nothing that is loaded."""
    import vl_convert

    spec = {"$schema": SCHEMA, "config": CONFIG, **chart}
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
