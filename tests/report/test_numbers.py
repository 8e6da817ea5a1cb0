import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneworthy.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measurable"),
        (0, "$0"),
        (0.0213, "$0.021"),
        (0.000123, "$0.00012"),
        (0.0999, "$0.10"),
        (0.5, "$0.50"),
        (4.1, "$4.10"),
        (1234.5, "$1,234"),
        (1e-9, "<$0.000001"),
    ],
)
def test_money(value, text):
    assert numbers.usd(value) == text


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_money_is_within_the_digits_it_shows(value):
    text = numbers.usd(value)
    assert "e" not in text
    assert math.isclose(float(text.lstrip("$").replace(",", "")), value, rel_tol=0.051)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measurable"),
        (0, "0 s"),
        (0.414, "0.41 s"),
        (9.999, "10.0 s"),
        (59.96, "1 min 00 s"),
        (312, "5 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds(value, text):
    assert numbers.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2, "about 0 s"),
        (99.4, "about 99 s"),
        (99.6, "about 2 min"),
        (869, "about 14 min"),
        (3580, "about 1 h 00 min"),
        (7500, "about 2 h 05 min"),
    ],
)
def test_time_left(value, text):
    assert numbers.about(value) == text


def test_signed_shows_no_sign_on_what_rounds_to_nothing():
    assert numbers.signed(-0.0001) == "0.000"
    assert numbers.signed(0.12) == "+0.120"
    assert numbers.signed(-0.12) == "\N{MINUS SIGN}0.120"


def test_a_small_p_is_never_zero():
    assert numbers.p_value(0.0) == "<0.001"
    assert numbers.p_value(0.0421) == "0.042"


@pytest.mark.parametrize(
    "write",
    [
        numbers.score,
        numbers.signed,
        numbers.interval,
        numbers.signed_interval,
        numbers.p_value,
        numbers.count,
        numbers.usd,
        numbers.seconds,
        numbers.memory,
        numbers.share,
    ],
)
def test_none_is_not_measurable(write):
    assert write(None) == "not measurable"
