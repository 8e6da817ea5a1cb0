"""Numbers as people read them. None is always "not measurable"."""

from __future__ import annotations

from collections.abc import Sequence

NOT_MEASURABLE = "not measurable"
MINUS = "\N{MINUS SIGN}"


def score(value: float | None) -> str:
    """`0.812`."""
    return NOT_MEASURABLE if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """`+0.120`; a true minus sign, and no sign on what rounds to nothing."""
    if value is None:
        return NOT_MEASURABLE
    text = f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def interval(bounds: Sequence[float] | None) -> str:
    """`0.760 to 0.860`."""
    return NOT_MEASURABLE if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def signed_interval(bounds: Sequence[float] | None) -> str:
    """`−0.060 to +0.020`."""
    return NOT_MEASURABLE if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def p_value(p: float | None) -> str:
    """`0.042`, or `<0.001`."""
    if p is None:
        return NOT_MEASURABLE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """`48,000`."""
    return NOT_MEASURABLE if value is None else f"{value:,.0f}"


def usd(value: float | None) -> str:
    """`$0.021`, `$4.10`, `$312`: never an exponent, two significant digits below a dollar."""
    if value is None:
        return NOT_MEASURABLE
    if value == 0:
        return "$0"
    if abs(value) >= 100:
        return f"${value:,.0f}"
    if abs(value) >= 1:
        return f"${value:.2f}"
    if abs(value) < 1e-6:
        return "<$0.000001"
    exponent = int(f"{abs(value):.1e}".split("e")[1])
    return f"${value:.{1 - exponent}f}"


def seconds(value: float | None) -> str:
    """`0.41 s`, `12.3 s`, `5 min 12 s`, `2 h 05 min`."""
    if value is None:
        return NOT_MEASURABLE
    if value == 0:
        return "0 s"
    if value < 59.95:
        return f"{value:.{2 if value < 9.995 else 1}f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about(value: float) -> str:
    """`about 40 s`, `about 13 min`, `about 2 h 05 min`: time left, as roughly as it is known."""
    if value < 99.5:
        return f"about {value:.0f} s"
    minutes = round(value / 60)
    return f"about {minutes} min" if minutes < 60 else f"about {seconds(60 * minutes)}"


def memory(value: float | None) -> str:
    """`1.2 GB`, in powers of ten."""
    if value is None:
        return NOT_MEASURABLE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} bytes"


def share(value: float | None) -> str:
    """`12 %`."""
    return NOT_MEASURABLE if value is None else f"{100 * value:.0f} %"


def plural(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
