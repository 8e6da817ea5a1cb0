from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneworthy.config import Columns
from tuneworthy.data.formats import FORMATS, RawRow, read_file, read_rows, read_spec
from tuneworthy.errors import DataError
from tuneworthy.types import Message

from .rows import pair, project, write_jsonl

SAME: dict[str, dict[str, Any]] = {
    "prompt and completion": {"prompt": "2+2?", "completion": "4"},
    "prompt of turns": {"prompt": [{"role": "user", "content": "2+2?"}], "completion": "4"},
    "OpenAI": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
        ]
    },
    "Alpaca": {"instruction": "2+2?", "input": "", "output": "4"},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    },
}


def read(path: Path, **settings: Any) -> list[RawRow]:
    return read_file(path, base=path.parent, **settings)


def refused(path: Path, **settings: Any) -> tuple[str, str]:
    """The text of the `error:` line, without the folder, and of the `hint:` line."""
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    folder = f"{path.parent}/"
    assert caught.value.hint is not None
    assert caught.value.exit_code == 1
    return str(caught.value).replace(folder, ""), caught.value.hint.replace(folder, "")


def lines(path: Path, *rows: Any) -> Path:
    return write_jsonl(path / "rows.jsonl", rows)


def test_every_format_has_a_case() -> None:
    assert len(SAME) == len(FORMATS) + 1


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_formats_mean_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(lines(tmp_path, row)) == [
        RawRow("rows.jsonl:1", (Message("user", "2+2?"),), "4", None)
    ]


def test_last_assistant_turn_is_the_completion(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (row,) = read(lines(tmp_path, {"messages": messages}))
    assert row.prompt == tuple(Message(role, text) for role, text in turns[:-1])  # type: ignore[arg-type]
    assert row.completion == "d"


def test_alpaca_input_stands_under_the_instruction(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum", "input": "1 2", "output": "3"},
        {"instruction": "Sum", "input": None, "output": "0"},
        {"instruction": "Sum", "output": "0"},
    ]
    prompts = [row.prompt[0].content for row in read(lines(tmp_path, *rows))]
    assert prompts == ["Sum\n\n1 2", "Sum", "Sum"]


def test_columns_name_the_two_fields(tmp_path: Path) -> None:
    path = lines(tmp_path, {"q": "a", "a": "b", "prompt": "x", "completion": "y"})
    (row,) = read(path, columns=Columns(prompt="q", completion="a"))
    assert (row.prompt[0].content, row.completion) == ("a", "b")


def test_group_is_written_as_text(tmp_path: Path) -> None:
    path = lines(tmp_path, {**pair(0), "file": 7}, {**pair(1), "file": "a.php"})
    assert [row.group for row in read(path, group_by="file")] == ["7", "a.php"]


def test_blank_texts_are_read_for_the_ledger_to_drop(tmp_path: Path) -> None:
    (row,) = read(lines(tmp_path, {"prompt": " ", "completion": ""}))
    assert (row.prompt[0].content, row.completion) == (" ", "")


def test_jsonl_lines_are_counted_over_blank_ones_and_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps(pair(0)).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n \n" + row)
    assert [row.source for row in read(path)] == ["rows.jsonl:1", "rows.jsonl:4"]


def test_csv_line_is_where_the_record_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\n\nd,"e, ""f"""\n', encoding="utf-8-sig")
    rows = read(path)
    assert [row.source for row in rows] == ["rows.csv:2", "rows.csv:5"]
    assert [row.prompt[0].content for row in rows] == ["a\nb", "d"]
    assert rows[1].completion == 'e, "f"'


def test_csv_takes_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,completion\n{'x' * 200_000},y\n")
    assert len(read(path)[0].prompt[0].content) == 200_000


@pytest.mark.parametrize("form", ["list", "lines"])
def test_json_is_a_list_or_lines(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows.json"
    rows = [pair(0), pair(1)]
    path.write_text(
        json.dumps(rows, indent=1) if form == "list" else "\n".join(map(json.dumps, rows))
    )
    assert [row.source for row in read(path)] == ["rows.json:1", "rows.json:2"]


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", "d"], "n": [1, 2]})
    parquet.write_table(table, path)
    assert [(row.source, row.group) for row in read(path, group_by="n")] == [
        ("rows.parquet:1", "1"),
        ("rows.parquet:2", "2"),
    ]


def test_glob_reads_files_in_order_and_leaves_out_the_test_file(project_folder: Path) -> None:
    for name in ("b", "a", "test"):
        write_jsonl(project_folder / f"{name}.jsonl", [pair(0)])
    found = read_rows(project(project_folder, examples="*.jsonl", test="test.jsonl"))
    assert [row.source for row in found] == ["a.jsonl:1", "b.jsonl:1"]


def test_glob_from_the_root(tmp_path: Path, project_folder: Path) -> None:
    path = write_jsonl(tmp_path / "far.jsonl", [pair(0)])
    (row,) = read_rows(project(project_folder, examples=f"{tmp_path}/*.jsonl"))
    assert row.source == f"{path}:1"


# Bad input: what the user reads, word by word.


def test_missing_file_names_the_nearest(project_folder: Path) -> None:
    write_jsonl(project_folder / "examples.jsonl", [pair(0)])
    with pytest.raises(DataError) as caught:
        read_rows(project(project_folder, examples="example.jsonl"))
    assert str(caught.value) == f"{project_folder}/example.jsonl: no such file (data.examples)"
    assert caught.value.hint == "did you mean 'examples.jsonl'?"


def test_missing_file_in_an_empty_folder(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_spec("test.csv", project(project_folder), "data.test")
    assert str(caught.value) == f"{project_folder}/test.csv: no such file (data.test)"
    assert caught.value.hint == f"ls {project_folder}"


def test_glob_without_match(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(project(project_folder, examples="*.csv"))
    assert str(caught.value) == f"{project_folder}/*.csv: no file matches '*.csv' (data.examples)"


def test_folder(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(project(project_folder, examples="."))
    assert str(caught.value) == f"{project_folder}: a folder, not a file"
    assert caught.value.hint == f"name {project_folder}/*.jsonl"


def test_unknown_file_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.touch()
    assert refused(path) == (
        "rows.xlsx: unknown file type '.xlsx'",
        "known types: .jsonl, .json, .csv, .parquet; rename the file if it is one of them",
    )


EMPTY_HINT = 'one row is one line such as {"prompt": "2+2?", "completion": "4"}'


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.touch()
    assert refused(path) == (f"rows.{suffix}: empty file", EMPTY_HINT)


@pytest.mark.parametrize(
    ("name", "text"), [("r.jsonl", "\n \n"), ("r.json", "[]"), ("r.csv", "prompt,completion\n")]
)
def test_no_rows(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert refused(path) == (f"{name}: no rows", EMPTY_HINT)


def test_broken_line_in_the_middle_counts_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(pair(0))
    path.write_text("\n".join([good, '{"prompt": "a" "b"}', good, "{", "not json", good]))
    assert refused(path) == (
        "rows.jsonl:2: not JSON: expecting ',' delimiter at column 16 (and 2 more broken lines)",
        "sed -n 2p rows.jsonl",
    )


def test_one_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(pair(0)) + "\n{'prompt': 'a'}\n")
    assert refused(path)[0] == (
        "rows.jsonl:2: not JSON: expecting property name enclosed in double quotes at column 2"
    )


def test_line_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000)
    assert refused(path)[0] == "rows.jsonl:1: not JSON: nested too deeply"


def test_broken_json_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"prompt": "a",\n"completion" 1}]')
    assert refused(path) == (
        "rows.json:3: not JSON: expecting ':' delimiter at column 14",
        "python -m json.tool rows.json",
    )


def test_json_object_around_the_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": [pair(0)]}, indent=1))
    assert refused(path) == (
        "rows.json: a .json file holds one list of rows, this one an object with version, data",
        "write [{…}, {…}], or one row a line",
    )


def test_row_that_is_no_object(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, pair(0), ["a", "b"])) == (
        "rows.jsonl:2: a row is an object with named fields, this is a list",
        'write {"prompt": …, "completion": …}',
    )


def test_missing_field_with_a_near_name(tmp_path: Path) -> None:
    rows = [pair(0), {"prompt": "a", "completions": "b"}, pair(1), {"prompt": "c"}, {}]
    assert refused(lines(tmp_path, *rows)) == (
        "rows.jsonl:2: missing field 'completion'; it has prompt, completions "
        "(and 2 more broken rows)",
        "rename 'completions' to 'completion'",
    )


def test_missing_field_in_the_first_row(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, {"prompt": "a"}, pair(1))) == (
        "rows.jsonl:1: missing field 'completion'; it has prompt",
        "add 'completion' or remove the row",
    )


def test_missing_group(tmp_path: Path) -> None:
    path = lines(tmp_path, {**pair(0), "file": "a"}, pair(1))
    assert refused(path, group_by="file")[0] == (
        "rows.jsonl:2: missing field 'file'; it has prompt, completion"
    )


def test_null_group(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, {**pair(0), "file": None}), group_by="file") == (
        "rows.jsonl:1: 'file' (data.group_by) must be text or a number, this is null",
        "give the row a value, or remove group_by from tuneworthy.yaml",
    )


@pytest.mark.parametrize(
    ("value", "found", "hint"),
    [
        (12, "the number 12", 'write it as text: "12"'),
        (1.5, "the number 1.5", 'write it as text: "1.5"'),
        (True, "true", 'write it as text: "true"'),
        (None, "null", "remove the row, or write the text that is wanted"),
        ({}, "an object", "remove the row, or write the text that is wanted"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_texts_that_are_none(tmp_path: Path, field: str, value: Any, found: str, hint: str) -> None:
    path = lines(tmp_path, pair(0), {**pair(1), field: value})
    assert refused(path) == (f"rows.jsonl:2: '{field}' must be text, this is {found}", hint)


def test_completion_that_is_a_list(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "a", "completion": ["b"]})
    assert refused(path)[0] == "rows.jsonl:1: 'completion' must be text, this is a list"


def test_unknown_role(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    assert refused(lines(tmp_path, {"messages": messages})) == (
        "rows.jsonl:1: turn 2 of 'messages' has the unknown role 'tool'",
        "known roles: system, user, assistant; remove the row or rename the role",
    )


def test_turns_without_an_answer(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, {"messages": [{"role": "user", "content": "a"}]})) == (
        "rows.jsonl:1: 'messages' has no assistant turn, so no completion",
        "add the answer that is wanted, or remove the row",
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("hello", "'messages' must be a list of turns, this is a text"),
        (["hello"], "turn 1 of 'messages' is a text"),
        ([{"role": "user"}], "missing field 'content' in turn 1 of 'messages'; it has role"),
        (
            [{"role": "user", "content": None}],
            "'content' of turn 1 of 'messages' must be text, this is null",
        ),
    ],
)
def test_turns_that_are_none(tmp_path: Path, messages: Any, what: str) -> None:
    assert refused(lines(tmp_path, {"messages": messages}))[0] == f"rows.jsonl:1: {what}"


def test_unknown_format(tmp_path: Path) -> None:
    assert refused(lines(tmp_path, {"question": "a", "answer": "b"})) == (
        "rows.jsonl:1: unknown row format: the row has question, answer; known are "
        "{prompt, completion}, {messages}, {instruction, output}, {conversations}",
        "name the two fields in tuneworthy.yaml: "
        "data: {columns: {prompt: FIELD, completion: FIELD}}",
    )


def test_not_utf8_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = json.dumps(pair(0)).encode() + b"\n"
    path.write_bytes(b"\xef\xbb\xbf" + first + '{"prompt": "caf\xe9"}'.encode("latin1"))
    offset = 3 + len(first) + len('{"prompt": "caf')
    assert path.read_bytes()[offset] == 0xE9
    assert refused(path) == (
        f"rows.jsonl:2: not UTF-8 at byte offset {offset} (0xe9)",
        "iconv -f latin1 -t utf-8 rows.jsonl > utf8.jsonl",
    )


def test_not_utf8_on_the_first_line_after_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfab\xe9")
    assert refused(path)[0] == "rows.csv:1: not UTF-8 at byte offset 5 (0xe9)"


def test_utf16(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,b\n", encoding="utf-16")
    assert refused(path) == (
        "rows.csv:1: UTF-16, not UTF-8",
        "iconv -f utf-16 -t utf-8 rows.csv > utf8.csv",
    )


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_line_of_100_mb_is_refused_without_reading_it(tmp_path: Path, suffix: str) -> None:
    import tracemalloc

    path = tmp_path / f"rows.{suffix}"
    with path.open("wb") as file:
        file.write(b'{"prompt": "a", "completion": "b"}\n')
        file.truncate(100_000_000)
    tracemalloc.start()
    message, hint = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == f"rows.{suffix}:2: a line of more than 10 MB"
    assert hint == f"sed 2d rows.{suffix} > without.{suffix}"
    assert peak < 40e6


def test_csv_with_too_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,b\nhello, you,b\n")
    assert refused(path) == (
        "rows.csv:3: the record has 3 cells, the header 2",
        'put texts with commas in "quotes"',
    )


def test_csv_with_an_open_quote(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\na,b\n"c,d\ne,f\n')
    assert refused(path) == (
        "rows.csv:3: not CSV: unexpected end of data",
        'close every "quote" and write a quote inside one as ""',
    )


def test_csv_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,prompt\na,b\n")
    assert refused(path) == (
        "rows.csv:1: two columns are called 'prompt'",
        "the first line names the columns; give each a name of its own",
    )


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 not really")
    message, hint = refused(path)
    assert message.startswith("rows.parquet: not Parquet: ")
    assert hint == "write it again with pandas: table.to_parquet(path)"


def test_hub_without_a_network(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(project(project_folder, examples="hf:owner/rows:train"))
    assert re.match(r"hf:owner/rows:train: cannot be loaded from the hub: \S+", str(caught.value))
    assert caught.value.hint == "download the files and name them: data: {examples: rows.parquet}"


def test_hub_rows_are_numbered(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, split: str) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list([pair(0), pair(1)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_rows(project(project_folder, examples="hf:owner/rows"))
    assert asked == [("owner/rows", "train")]
    assert [row.source for row in found] == ["hf:owner/rows:1", "hf:owner/rows:2"]


def test_hub_name_that_is_none(project_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(project(project_folder, examples="hf:a/b/c"))
    assert str(caught.value) == "hf:a/b/c: not the name of a data set"
    assert caught.value.hint == "write hf:owner/name or hf:owner/name:train"
