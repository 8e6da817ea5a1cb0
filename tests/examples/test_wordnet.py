from __future__ import annotations

from collections import Counter

from tuneworthy.examples.wordnet import FIELDS, SIBLINGS, concepts, sample

NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE
00000001 03 n 01 thing 0 000 | whatever there is
00000002 05 n 02 toy_dog 0 toy 1 002 @ 00000009 n 0000 ~ 00000003 n 0000 | a small dog; "a toy in a bag"
00000003 05 n 01 lap_dog 0 001 @ 00000009 n 0000 | a dog for the lap
00000004 05 n 01 hot_dog 0 001 @ 00000009 n 0000 | a dog in the sun
00000005 20 n 05 oak 0 elm 0 ash 0 fir 0 yew 0 001 @i 00000008 n 0000 | a tree; any of them
00000006 28 n 01 noon 0 000 | twelve o'clock
"""
VERBS = """\
00000007 38 v 02 run 0 race 1 002 @ 00000001 v 0000 + 00000001 n 0101 02 + 01 00 + 02 00 | move fast
"""


def test_forty_fields_with_the_numbers_of_wordnet() -> None:
    assert len(set(FIELDS.values())) == len(FIELDS) == 40
    assert {FIELDS["04"], FIELDS["28"]} == {"noun.act", "noun.time"}
    assert {FIELDS["29"], FIELDS["43"]} == {"verb.body", "verb.weather"}


def test_a_concept_is_its_words_its_definition_and_what_is_above_it() -> None:
    assert list(concepts("noun", NOUNS)) == [
        {
            "prompt": "toy dog, toy: a small dog",
            "completion": "noun.animal",
            "above": "noun 00000009",
        },
        {
            "prompt": "lap dog: a dog for the lap",
            "completion": "noun.animal",
            "above": "noun 00000009",
        },
        {
            "prompt": "hot dog: a dog in the sun",
            "completion": "noun.animal",
            "above": "noun 00000009",
        },
        {
            "prompt": "oak, elm, ash: a tree; any of them",
            "completion": "noun.plant",
            "above": "noun 00000008",
        },
        {"prompt": "noon: twelve o'clock", "completion": "noun.time", "above": "noun 00000006"},
    ]
    assert list(concepts("verb", VERBS)) == [
        {"prompt": "run, race: move fast", "completion": "verb.motion", "above": "verb 00000001"}
    ]


def test_few_siblings_are_taken_and_the_same_ones_each_time() -> None:
    rows = list(concepts("noun", NOUNS))
    assert sample(rows) == sample(reversed(rows))
    assert Counter(row["above"] for row in sample(rows))["noun 00000009"] == SIBLINGS == 2


def test_fields_get_rows_by_the_root_of_their_size() -> None:
    rows = [
        {"prompt": f"{field} {n}", "completion": field, "above": f"{field} {n}"}
        for field, size in (("a", 4), ("b", 100), ("c", 400))
        for n in range(size)
    ]
    taken = Counter(row["completion"] for row in sample(rows, 64))
    assert taken == {"a": 4, "b": 20, "c": 40}
