"""US dollars, from measured seconds and tokens and the prices in the project file."""

from __future__ import annotations

import math
from fractions import Fraction

from tuneworthy.config import Prices


def fit_usd(fit_seconds: float, prices: Prices) -> float:
    """Dollars of machine time that fitting took."""
    return fit_seconds / 3600 * prices.machine_hour_usd


def usd_per_1k_requests(
    seconds_per_request: float,
    prompt_tokens_mean: float,
    output_tokens_mean: float,
    prices: Prices,
) -> float:
    """Dollars of 1,000 requests: machine time and tokens, read and written.

    Seconds are the machine's own: those of a whole batch divided by its rows.
    """
    machine = seconds_per_request / 3600 * prices.machine_hour_usd
    tokens = (
        prompt_tokens_mean * prices.input_per_million_usd
        + output_tokens_mean * prices.output_per_million_usd
    ) / 1e6
    return 1000 * (machine + tokens)


def month_usd(fit: float, per_1k: float, requests_per_month: int) -> float:
    """Dollars of fitting once and answering for one month, by which arms are ranked.

    One month, not a year: tasks and base models change, and training comes again with them.
    """
    return fit + per_1k * requests_per_month / 1000


def break_even_requests(
    trained_fit_usd: float,
    trained_usd_per_1k: float,
    untrained_fit_usd: float,
    untrained_usd_per_1k: float,
) -> int | None:
    """Smallest number of requests at which the trained arm has cost less; None if there is none."""
    ahead = Fraction(trained_fit_usd) - Fraction(untrained_fit_usd)
    if ahead < 0:
        return 0
    saved = (Fraction(untrained_usd_per_1k) - Fraction(trained_usd_per_1k)) / 1000
    return math.floor(ahead / saved) + 1 if saved > 0 else None
