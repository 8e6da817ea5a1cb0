from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneworthy.data.split import Division, Splits, split
from tuneworthy.errors import DataError
from tuneworthy.types import Example, Message

from .rows import example, words


def rows(count: int, group: Callable[[int], str] | None = None) -> list[Example]:
    return [example(n, group=group(n) if group else None) for n in range(count)]


def ids(part: tuple[Example, ...]) -> set[str]:
    return {row.id for row in part}


def sizes(division: Division) -> tuple[int, int, int]:
    return tuple(len(part) for _, part in division.splits.items())  # type: ignore[return-value]


def refused(*args: object, **settings: object) -> tuple[str, str | None]:
    with pytest.raises(DataError) as caught:
        split(*args, **settings)  # type: ignore[arg-type]
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize(
    ("count", "train", "dev", "test"),
    [(60, 20, 20, 20), (100, 60, 20, 20), (300, 210, 30, 60), (1500, 1200, 100, 200)],
)
def test_default_sizes(count: int, train: int, dev: int, test: int) -> None:
    assert sizes(split(rows(count))) == (train, dev, test)


def test_sizes_as_numbers_and_shares() -> None:
    assert sizes(split(rows(200), test=50, dev=0.15)) == (120, 30, 50)


def test_every_row_is_in_one_split_in_input_order() -> None:
    given_rows = rows(150)
    division = split(given_rows)
    found = [row.id for _, part in division.splits.items() for row in part]
    assert sorted(found) == [row.id for row in given_rows]
    for _, part in division.splits.items():
        assert list(part) == sorted(part, key=lambda row: row.id)


def test_the_seed_decides_and_repeats() -> None:
    assert split(rows(150)).splits == split(rows(150)).splits
    assert ids(split(rows(150)).splits.test) != ids(split(rows(150), seed=1).splits.test)


def test_the_order_of_rows_changes_nothing() -> None:
    one = split(rows(150)).splits
    other = split(rows(150)[::-1]).splits
    assert (ids(one.test), ids(one.dev)) == (ids(other.test), ids(other.dev))


def test_rows_added_later_move_few() -> None:
    before = split(rows(300), test=60, dev=30).splits
    after = split(rows(330), test=60, dev=30).splits
    assert len(ids(before.test) - ids(after.test)) <= 12


def test_groups_do_not_straddle() -> None:
    some = rows(200, lambda n: f"g{n // 4}")
    division = split(some)
    home = {row.id: name for name, part in division.splits.items() for row in part}
    for n in range(0, 200, 4):
        assert len({home[example(n + k).id] for k in range(4)}) == 1


def test_near_duplicates_do_not_straddle() -> None:
    twins = [example(900 + n, words(n) + " ok") for n in range(30)]
    division = split([*rows(200), *twins])
    home = {row.id: name for name, part in division.splits.items() for row in part}
    assert all(home[example(n).id] == home[twin.id] for n, twin in enumerate(twins))
    assert {home[twin.id] for twin in twins} == {"train", "dev", "test"}
    (found,) = division.findings
    assert (found.check, found.count) == ("near-duplicates", 60)
    assert found.summary.startswith("60 rows in 30 sets of nearly equal prompts: ")


def test_near_duplicates_in_other_groups_are_leaks() -> None:
    """Every file has the same trivial function; joining files by it would leave one cluster."""
    some = [
        example(n, "return name" if n % 10 == 0 else None, group=f"file{n // 10}")
        for n in range(300)
    ]
    division = split(some)
    prompts = [{row.text for row in part} for _, part in division.splits.items()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert "return name" in prompts[2]
    test_files = len({row.group for row in division.splits.test})
    assert len(division.dropped) == 30 - test_files
    drop = next(iter(division.dropped.values()))
    assert drop.kind == "leak"
    assert drop.reason.startswith("nearly equals rows.jsonl:")
    assert drop.reason.endswith(" (test)")


def test_a_split_has_many_clusters_rather_than_a_few_large() -> None:
    some = rows(600, lambda n: f"big{n % 5}" if n < 300 else f"g{n // 2}")
    for seed in range(10):
        test = split(some, test=60, dev=30, seed=seed).splits.test
        assert len({row.cluster for row in test}) == 30


def test_rows_of_one_cluster_carry_its_name() -> None:
    some = rows(100, lambda n: f"g{n // 2}")
    splits = split(some).splits
    names = {row.id: row.cluster for _, part in splits.items() for row in part}
    assert names[some[0].id] == names[some[1].id] == "c" + some[0].id[1:]
    assert len(set(names.values())) == 50


def test_a_few_long_system_prompts_do_not_make_rows_alike() -> None:
    systems = [" ".join(words(1000 + 50 * kind + n) for n in range(40)) for kind in range(9)]
    some = [
        replace(row, prompt=(Message("system", systems[n % 9]), *row.prompt))
        for n, row in enumerate(rows(100))
    ]
    division = split(some)
    assert len({row.cluster for _, part in division.splits.items() for row in part}) == 100


def test_clusters_end_before_they_overshoot_by_a_fifth() -> None:
    for seed in range(10):
        test = split(rows(260, lambda n: f"g{n // 13}"), test=30, dev=26, seed=seed).splits.test
        assert len(test) == 26


def test_a_cluster_that_would_overshoot_is_passed_over() -> None:
    some = rows(400, lambda n: "big" if n < 100 else f"g{n}")
    for seed in range(20):
        train, dev, test = sizes(split(some, test=30, dev=20, seed=seed))
        assert (dev, test) == (20, 30)
        assert train == 350


def test_large_clusters_are_taken_where_nothing_fits() -> None:
    assert sizes(split(rows(200, lambda n: f"g{n % 5}"), test=20, dev=20)) == (120, 40, 40)


def test_training_rows_are_capped_and_the_cap_nests() -> None:
    full = split(rows(200)).splits
    large = split(rows(200), train=80)
    small = split(rows(200), train=40)
    assert ids(small.splits.train) < ids(large.splits.train) < ids(full.train)
    assert len(small.splits.train) == 40
    assert {d.kind for d in small.dropped.values()} == {"not-needed"}
    assert {d.reason for d in small.dropped.values()} == {"data.train is 40"}
    assert small.splits.test == full.test


def test_given_test_rows_drop_the_training_copies() -> None:
    test = [replace(example(500 + n), source=f"test.jsonl:{n + 1}") for n in range(30)]
    leak = example(900, words(503) + " please")
    division = split([*rows(100), leak], test=test)
    assert ids(division.splits.test) == {row.id for row in test}
    assert division.dropped[leak.id].kind == "leak"
    assert division.dropped[leak.id].reason == ("nearly equals test.jsonl:4 (test)")
    assert sizes(division) == (80, 20, 30)


def test_given_test_rows_drop_their_group_from_training() -> None:
    test = [replace(example(500 + n), group="a") for n in range(30)]
    division = split(rows(100, lambda n: "a" if n < 10 else f"g{n}"), test=test)
    assert len(division.dropped) == 10
    assert division.dropped[example(0).id].reason == "is of the group of rows.jsonl:530 (test)"


def test_given_dev_rows_drop_out_where_test_has_them() -> None:
    test = [example(500 + n) for n in range(30)]
    dev = [example(600 + n) for n in range(30)] + [example(900, words(503) + " please")]
    division = split(rows(40), test=test, dev=dev)
    assert sizes(division) == (40, 30, 30)
    assert list(division.dropped) == [dev[-1].id]


def test_three_rows() -> None:
    assert refused(rows(3), where="rows.jsonl") == (
        "rows.jsonl: 3 usable rows: too few, at least 60 are needed (20 test, 20 dev, 20 training)",
        "add 57 or more different rows",
    )


def test_too_few_rows_say_what_was_lost() -> None:
    message, hint = refused(rows(1), lost={"duplicate": 299, "empty": 2})
    assert message == (
        "data.examples: 1 usable row of 302 (299 duplicate, 2 empty): too few, at least 60 are "
        "needed (20 test, 20 dev, 20 training)"
    )
    assert hint == "add 59 or more different rows"


def test_more_test_rows_asked_for_than_there_are() -> None:
    assert refused(rows(150), test=200) == (
        "data.examples: 150 usable rows: too few, at least 240 are needed "
        "(200 test, 20 dev, 20 training)",
        "add 90 or more different rows, or lower data.test and data.dev",
    )


@pytest.mark.parametrize("name", ["test", "dev", "train"])
def test_sizes_below_twenty(name: str) -> None:
    assert refused(rows(100), **{name: 5}) == (
        f"data.{name}: 5: a split needs at least 20 rows",
        f"write `{name}: 20` or more under `data:` in tuneworthy.yaml",
    )


def test_a_share_below_twenty() -> None:
    assert refused(rows(100), test=0.1)[0] == (
        "data.test: 0.1 of 100 rows is 10: a split needs at least 20 rows"
    )


def test_a_test_file_below_twenty() -> None:
    assert refused(rows(100), test=[example(900)])[0] == (
        "data.test: 1 usable row in its own file: a split needs at least 20 rows"
    )


def test_groups_too_coarse_to_split() -> None:
    assert refused(rows(300, lambda n: f"g{n % 2}")) == (
        "data.examples: 0 rows left for train, at least 20 are needed: rows of one group and "
        "near duplicates stay together, which makes 2 clusters, the largest of 150 rows",
        "add rows that differ more, or set data.group_by to a field with more values",
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 25), min_size=60, max_size=140),
    st.integers(0, 9),
)
def test_no_group_ever_straddles_and_no_row_is_lost(groups: list[int], seed: int) -> None:
    some = [example(n, group=f"g{group}") for n, group in enumerate(groups)]
    try:
        division = split(some, seed=seed)
    except DataError:
        return
    splits: Splits = division.splits
    names = [{row.group for row in part} for _, part in splits.items()]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert sum(len(part) for _, part in splits.items()) + len(division.dropped) == len(some)
    assert all(len(part) >= 20 for _, part in splits.items())
