"""Which of a peer's settings is its fastest, without trying all of them in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

KEEP = 0.75
"""Number formats this close to the fastest go on to the next round."""
GIVE_UP = 0.7
"""A trial may stop once its rate is this far below the best so far."""

CLOSE = 0.95
"""A trial this close to the best may be the best in truth."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings of a peer; `size` is rows per forward pass, 1 pack for packed rows."""

    number_format: str
    arrangement: str
    size: int

    def name(self, batch_rows: int) -> str:
        shape = "" if self.arrangement == "packed" else f" {self.size}×{batch_rows // self.size}"
        return f"trl {self.number_format} {self.arrangement}{shape}"


Try = Callable[[Variant, float], float | None]
"""Measures a variant in a few steps, in tokens/s; told a rate below which it may give up."""


def screen(
    try_: Try,
    number_formats: Sequence[str],
    arrangements: Sequence[str],
    sizes: Sequence[int],
) -> dict[Variant, float | None]:
    """Rates of the variants tried; None where a trial failed.

    Three rounds: number formats in the first arrangement and size; what is close to the fastest in
    the other arrangements; the best of those that are not packed in the other sizes.
    """
    rates: dict[Variant, float | None] = {}

    def measure(number_format: str, arrangement: str, size: int) -> None:
        variant = Variant(number_format, arrangement, size)
        best = max((rate for rate in rates.values() if rate), default=0.0)
        rates[variant] = try_(variant, GIVE_UP * best)

    for number_format in number_formats:
        measure(number_format, arrangements[0], sizes[0])
    best = max((rate for rate in rates.values() if rate), default=0.0)
    close = [v.number_format for v, rate in rates.items() if rate and rate >= KEEP * best]
    for number_format in close:
        for arrangement in arrangements[1:]:
            measure(number_format, arrangement, 1 if arrangement == "packed" else sizes[0])
    loose = {v: rate for v, rate in rates.items() if rate and v.arrangement != "packed"}
    if loose:
        leader = max(loose, key=lambda variant: loose[variant])
        for size in sizes[1:]:
            measure(leader.number_format, leader.arrangement, size)
    return rates


def finalists(rates: Mapping[Variant, float | None]) -> list[Variant]:
    """The best variant, and the second if it is close: to be measured on all rows."""
    ranked = sorted((v for v in rates if rates[v]), key=lambda v: -(rates[v] or 0.0))[:2]
    return [v for v in ranked if (rates[v] or 0.0) >= CLOSE * (rates[ranked[0]] or 0.0)]
