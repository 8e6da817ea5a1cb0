from __future__ import annotations

import pytest

from tuneworthy.examples.php_summary import documented, pairs
from tuneworthy.examples.php_summary_metric import MAX_WORDS, says_it_briefly

LONG = (
    "The rows of the {0} are put into the order that the given callback asks for. Rows that the "
    "callback\n     * calls equal stay as they were, which {{@link\n     * toy_rank}} does not "
    "promise. Keys are lost in any case."
)


def block(summary: str, *description: str, tags: str = "@return bool") -> str:
    lines = "\n     *\n     * ".join([summary, *description])
    return f"/**\n     * {lines}\n     *\n     * {tags}\n     **/"


MANUAL = f"""<?php
class Toy {{
    {block("Sort rows of a toy by callback", LONG.format("toy"))}
    public function sort($callback);
    {block("Too short a description", "It is too short.")}
    public function short();
    {block("No description at all here")}
    public function bare();
}}
{block("Order the rows of an array", LONG.format("array"))}
function array_order(&$array){{}}
{block("Order the rows of an array", LONG.format("list"))}
function array_again(&$array){{}}
{block("The rows of the list are put in order", LONG.format("list"))}
function list_order(&$list){{}}
{block("Paint a big red house quickly", LONG.format("house"))}
function house_paint($house){{}}
{block("Order the rows of", LONG.format("hole"))}
function hole_order($hole){{}}
{block("Order the rows of pits", LONG.format("pit").replace("stay", "in , stay"))}
function pit_order($pit){{}}
"""


def test_rows_have_a_description_that_says_what_the_summary_says() -> None:
    rows = {row["prompt"].partition(":  ")[0]: row for row in pairs(MANUAL)}
    assert sorted((row["completion"], row["part"]) for row in rows.values()) == [
        ("Order the rows of an array.", "array"),
        ("Sort rows of a toy by callback.", "Toy"),
    ]
    assert any(row["prompt"].startswith("Toy::sort: The rows of the toy") for row in rows.values())
    assert all("which toy_rank does not promise" in row["prompt"] for row in rows.values())
    assert pairs(MANUAL) == pairs(MANUAL)


def test_names_and_parts_are_those_of_the_manual() -> None:
    assert [(name, part) for name, part, *_ in documented(MANUAL)] == [
        ("Toy::sort", "Toy"),
        ("Toy::short", "Toy"),
        ("array_order", "array"),
        ("array_again", "array"),
        ("list_order", "list"),
        ("house_paint", "house"),
        ("hole_order", "hole"),
        ("pit_order", "pit"),
    ]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Sort the rows of an array.", 1.0),
        ("It sorts an array. Its rows, that is.", 1.0),
        ("It sorts arrays.", 2 / 3),
        ("Sorting arrayed rows", 1.0),
        ("It paints a house.", 0.0),
        ("Sort. The rows. Of an array.", 0.0),
        ("Sort\nthe rows\nof an array", 0.0),
        ("Sort rows of an array " + "and more " * MAX_WORDS, 0.0),
        ("", 0.0),
    ],
)
def test_the_metric_asks_for_the_content_in_two_sentences(answer: str, score: float) -> None:
    assert says_it_briefly(answer, "Sort rows of an array.") == pytest.approx(score)


def test_a_summary_of_common_words_alone_can_be_scored() -> None:
    assert says_it_briefly("Used for it.", "Return it.") == 0.5
    assert says_it_briefly("Return it.", "Return it.") == 1.0
