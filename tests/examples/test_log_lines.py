from __future__ import annotations

import json

import pytest

from tuneworthy.examples.log_lines import MAX_CHARACTERS, collect, failure, form

LOG = """\
# failJSON: { "time": "2005-03-07T10:11:12", "match": true , "host": "192.0.2.1" }
Mar  7 10:11:12 srv toyd[3]: refused 192.0.2.1 at 192.0.2.9
Mar  7 10:11:13 srv toyd[3]: nobody asked about this line from 192.0.2.1
# failJSON: { "match": true, "host": "example.com", "desc": "no time" }
srv toyd[3]: refused example.com
# filterOptions: {"mode": "more"}
# failJSON: { "match": false }
srv toyd[3]: refused 192.0.2.3
# failJSON: { "time": "2015-12-01T01:02:03", "match": true, "host": "2001:db8::1" }

# failJSON: { "time": "2015-12-01T01:02:03", "match": true, "host": "2001:db8::1" }
[01/Dec/2015:01:02:03 +0100] toyd: refused 2001:db8::1
"""


def test_a_line_with_the_expectation_above_it_is_a_row() -> None:
    rows = collect([("toyd", LOG)])
    assert {row["prompt"]: row["completion"] for row in rows} == {
        "Mar  7 10:11:12 srv toyd[3]: refused 192.0.2.1 at 192.0.2.9": (
            '{"date":"03-07","time":"10:11:12","host":"192.0.2.1"}'
        ),
        "srv toyd[3]: refused example.com": '{"date":null,"time":null,"host":"example.com"}',
        "[01/Dec/2015:01:02:03 +0100] toyd: refused 2001:db8::1": (
            '{"date":"12-01","time":"01:02:03","host":"2001:db8::1"}'
        ),
    }
    assert {row["form"] for row in rows} == {
        "toyd: refused at",
        "toyd: refused",
        "toyd: toyd refused",
    }
    assert rows == collect([("toyd", LOG)])


def test_a_line_counts_once() -> None:
    assert len(collect([("toyd", LOG), ("toyd-journal", LOG), ("otherd", LOG)])) == 3


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("toyd", "Mar  7 10:11:12 srv toyd[3]: Failed login for ann from 192.0.2.1"),
        ("toyd-journal", "srv toyd[4]: Failed login for bob from 192.0.2.2 port 9"),
        ("toyd", "[Sat Mar 07 2015] (Failed) login for 'eve'"),
    ],
)
def test_lines_that_differ_in_names_and_numbers_have_one_form(name: str, line: str) -> None:
    assert form(name, line) == "toyd: Failed login for"


def test_long_lines_are_left_out() -> None:
    expected = json.dumps({"match": True, "host": "192.0.2.1"})
    text = f"# failJSON: {expected}\nfrom 192.0.2.1 {'x' * MAX_CHARACTERS}\n"
    assert collect([("toyd", text)]) == []


@pytest.mark.parametrize(
    ("line", "time", "host"),
    [
        ("Mar  7 10:11:12 from 192.0.2.10", "2005-03-07T10:11:12", "192.0.2.1"),
        ("Mar  7 10:11:12 from 5192.0.2.1", "2005-03-07T10:11:12", "192.0.2.1"),
        ("Mar  7 11:11:12 from 192.0.2.1", "2005-03-07T10:11:12", "192.0.2.1"),
        ("Mar  8 10:11:12 from 192.0.2.1", "2005-03-07T10:11:12", "192.0.2.1"),
        ("10:11:12 from 192.0.2.1", None, "192.0.2.1"),
        ("Mar  7 10:11:12 from 192.0.2.1", "soon", "192.0.2.1"),
        ("Mar  7 10:11:12 from 192.0.2.1", "2005-03-07T10:11:12", None),
    ],
)
def test_what_the_line_does_not_say_is_no_row(
    line: str, time: str | None, host: str | None
) -> None:
    assert failure(line, {"match": True, "time": time, "host": host}) is None


@pytest.mark.parametrize("day", ["Mar  7", "Mar 07", "2005-03-07", "20050307", "7/Mar/2005"])
def test_a_day_may_be_written_in_any_way(day: str) -> None:
    expected = {"match": True, "time": "2005-03-07T10:11:12", "host": "192.0.2.1"}
    found = failure(f"{day} 10:11:12 [192.0.2.1]:99", expected)
    assert found == {"date": "03-07", "time": "10:11:12", "host": "192.0.2.1"}
