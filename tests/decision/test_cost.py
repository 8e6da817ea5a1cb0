from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneworthy.config import Prices
from tuneworthy.decision.cost import (
    break_even_requests,
    fit_usd,
    month_usd,
    usd_per_1k_requests,
)

PRICES = Prices(machine_hour_usd=3.6, input_per_million_usd=2.0, output_per_million_usd=10.0)


def test_dollars_by_hand() -> None:
    assert fit_usd(1800, PRICES) == pytest.approx(1.8)
    # 1,000 requests: 500 s of machine, 400,000 tokens read, 20,000 written.
    assert usd_per_1k_requests(0.5, 400, 20, PRICES) == pytest.approx(0.5 + 0.8 + 0.2)
    assert month_usd(1.8, 1.5, 100_000) == pytest.approx(151.8)


@pytest.mark.parametrize(
    ("costs", "requests"),
    [
        ((0.10, 0.02, 0.0, 0.04), 5001),
        ((1.0, 1.0, 0.0, 2.0), 1001),
        ((1.0, 2.0, 0.0, 2.0), None),
        ((1.0, 3.0, 0.0, 2.0), None),
        ((0.0, 1.0, 0.0, 2.0), 1),
        ((0.0, 2.0, 0.0, 2.0), None),
        ((0.0, 2.0, 1.0, 2.0), 0),
    ],
)
def test_break_even_by_hand(costs: tuple[float, float, float, float], requests: int | None) -> None:
    assert break_even_requests(*costs) == requests


usd = st.integers(0, 1000)


@given(usd, usd, usd, usd)
def test_break_even_is_the_smallest_number(
    fit: int, each: int, other: int, other_each: int
) -> None:
    found = break_even_requests(fit, each, other, other_each)

    def ahead(requests: int) -> bool:
        return 1000 * fit + requests * each < 1000 * other + requests * other_each

    if found is None:
        assert not ahead(0) and not ahead(10**9)
    else:
        assert ahead(found)
        assert found == 0 or not ahead(found - 1)
