"""Every bad input: exit code 1, one error line that says where, one hint, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Tuneworthy
from tests.fakes import endpoint as fake_endpoint
from tests.fakes import projects
from tests.fakes.endpoint import DROP, HANG, PROBE, nearest_neighbour, said, serving

ROWS = projects.rows(120)


def with_lines(folder: Path, lines: dict[int, str | bytes]) -> Path:
    """A project whose examples.jsonl has other lines in some places, counted from 1."""
    projects.write(folder, ROWS)
    path = folder / "examples.jsonl"
    every = path.read_bytes().splitlines()
    for number, line in lines.items():
        every[number - 1] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join(every) + b"\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture(params=["decide", "check"])
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def refuses(
    tuneworthy: Tuneworthy, folder: Path, verb: str = "decide", *options: str
) -> tuple[str, str]:
    """The error and the hint; the project's folder is as it was."""
    before = sorted(path for path in folder.rglob("*"))
    refusal = tuneworthy(verb, "project", *options).refusal
    assert sorted(path for path in folder.rglob("*")) == before
    return refusal


ROW_CASES: dict[str, tuple[dict[int, str | bytes], str, str]] = {
    "broken line": (
        {50: '{"prompt": "a", "completion"'},
        "examples.jsonl:50: not JSON: expecting ':' delimiter at column 29",
        "sed -n 50p project/examples.jsonl",
    ),
    "broken lines": (
        {50: "{", 60: "nonsense", 61: "[1,"},
        "examples.jsonl:50: not JSON: expecting property name enclosed in double quotes "
        "at column 2 (and 2 more broken lines)",
        "sed -n 50p project/examples.jsonl",
    ),
    "missing field": (
        {7: '{"prompt": "a", "completoin": "b"}'},
        "examples.jsonl:7: missing field 'completion'; it has prompt, completoin",
        "rename 'completoin' to 'completion'",
    ),
    "number": (
        {7: '{"prompt": 5, "completion": "b"}'},
        "examples.jsonl:7: 'prompt' must be text, this is the number 5",
        'write it as text: "5"',
    ),
    "null": (
        {7: '{"prompt": null, "completion": "b"}', 9: '{"prompt": "a", "completion": null}'},
        "examples.jsonl:7: 'prompt' must be text, this is null (and 1 more broken rows)",
        "remove the row, or write the text that is wanted",
    ),
    "not an object": (
        {7: "[1]"},
        "examples.jsonl:7: a row is an object with named fields, this is a list",
        'write {"prompt": …, "completion": …}',
    ),
    "not UTF-8": (
        {7: b'{"prompt": "caf\xe9", "completion": "b"}'},
        "examples.jsonl:7: not UTF-8 at byte offset 921 (0xe9)",
        "iconv -f latin1 -t utf-8 project/examples.jsonl > utf8.jsonl",
    ),
}


@pytest.mark.parametrize("case", ROW_CASES)
def test_rows(tuneworthy: Tuneworthy, folder: Path, verb: str, case: str) -> None:
    lines, error, hint = ROW_CASES[case]
    with_lines(folder, lines)
    assert refuses(tuneworthy, folder, verb) == (f"project/{error}", hint)


def test_missing_file(tuneworthy: Tuneworthy, folder: Path, verb: str) -> None:
    projects.write(folder, ROWS, data__examples="example.jsonl")
    assert refuses(tuneworthy, folder, verb) == (
        "project/example.jsonl: no such file (data.examples)",
        "did you mean 'examples.jsonl'?",
    )


def test_empty_file(tuneworthy: Tuneworthy, folder: Path, verb: str) -> None:
    projects.write(folder, ROWS)
    (folder / "examples.jsonl").write_text("")
    assert refuses(tuneworthy, folder, verb) == (
        "project/examples.jsonl: empty file",
        'one row is one line such as {"prompt": "2+2?", "completion": "4"}',
    )


def test_three_rows(tuneworthy: Tuneworthy, folder: Path, verb: str) -> None:
    projects.write(folder, ROWS[:3], data__test=None, data__dev=None)
    assert refuses(tuneworthy, folder, verb) == (
        "examples.jsonl: 3 usable rows: too few, at least 60 are needed "
        "(20 test, 20 dev, 20 training)",
        "add 57 or more different rows",
    )


def peak(command: list[str], folder: Path) -> tuple[int, str, int, float]:
    """Exit code, stderr, peak resident bytes and seconds of a process."""
    start = time.monotonic()
    with (folder / "stderr").open("w+") as err:
        process = subprocess.Popen(command, cwd=folder, stderr=err, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read()
    return process.returncode, said, usage.ru_maxrss * 1024, time.monotonic() - start


def test_a_line_of_100_mb(folder: Path, tmp_path: Path) -> None:
    projects.write(folder, ROWS)
    command = [sys.executable, "-m", "tuneworthy", "check", "project"]
    code, _, normal, _ = peak(command, tmp_path)
    assert code == 0
    with (folder / "examples.jsonl").open("ab") as file:
        file.write(b'{"prompt": "a", "completion": "')
        file.truncate(file.tell() + 100_000_000)  # a hole: NUL characters that take no room
    code, err, used, seconds = peak(command, tmp_path)
    assert (code, err) == (
        1,
        "error: project/examples.jsonl:121: a line of more than 10 MB\n"
        "hint: sed 121d project/examples.jsonl > without.jsonl\n",
    )
    assert used < normal + 60_000_000
    assert seconds < 20


PROJECT_CASES: dict[str, tuple[str, str, str]] = {
    "unknown key": (
        "task: t\nbase: fake\ndata:\n  examples: examples.jsonl\n  tset: 40\n",
        "project/tuneworthy.yaml:5: unknown key 'data.tset'",
        "did you mean 'test'?",
    ),
    "unknown key and nothing near": (
        "task: t\nzzz: 1\ndata: {examples: examples.jsonl}\n",
        "project/tuneworthy.yaml:2: unknown key 'zzz'",
        "known keys: task, instruction, base, engine, endpoint, data, metric, arms, margin, budget, "
        "likelihood, exhaustive, requests_per_month, prices, few_shot, system_prompt, grammar, lora, full, "
        "parallel, seed",
    ),
    "missing key": (
        "task: t\nbase: fake\n",
        "project/tuneworthy.yaml: 'data' is missing",
        "add a line `data: …`",
    ),
    "not YAML": (
        "task: t\ndata: {examples: [\n",
        "project/tuneworthy.yaml:3: not YAML: expected the node content, but found '<stream end>'",
        "mind the indentation and the colons",
    ),
    "a list": (
        "- task\n",
        "project/tuneworthy.yaml: a project file is a list of `key: value` lines",
        "start with `task: my-task` and `data: {examples: examples.jsonl}`",
    ),
    "empty": (
        "",
        "project/tuneworthy.yaml: a project file is a list of `key: value` lines",
        "start with `task: my-task` and `data: {examples: examples.jsonl}`",
    ),
    "unknown arm": (
        "task: t\ndata: {examples: examples.jsonl}\narms: [zero-shot, lroa]\n",
        "project/tuneworthy.yaml: no arm is called 'lroa'; did you mean 'lora'? "
        "(known: zero-shot, system-prompt, constrained, few-shot, rag, linear, lora, full, "
        "few-shot+lora, rag+lora)",
        "docs/reference/project-file.md lists every key with its values",
    ),
    "two grammars": (
        "task: t\ndata: {examples: examples.jsonl}\ngrammar: {regex: a, labels: [a]}\n",
        "project/tuneworthy.yaml:3: 'grammar': labels and regex: give one of them "
        "(got {'regex': 'a', 'labels': ['a']})",
        "docs/reference/project-file.md lists every key with its values",
    ),
    "a grammar that is none": (
        "task: t\nbase: fake\ndata: {examples: examples.jsonl}\ngrammar: {regex: (a}\n",
        'grammar.regex: cannot be used: invalid regex "(a" (in regex): regex parse error: '
        "(a ^ error: unclosed group",
        "docs/concepts/arms.md says what a grammar cannot hold",
    ),
    "a grammar for no arm": (
        "task: t\ndata: {examples: examples.jsonl}\ngrammar: {arms: [lroa]}\n",
        "project/tuneworthy.yaml: no arm is called 'lroa'; did you mean 'lora'? "
        "(known: zero-shot, system-prompt, constrained, few-shot, rag, linear, lora, full, "
        "few-shot+lora, rag+lora)",
        "docs/reference/project-file.md lists every key with its values",
    ),
    "share above one": (
        "task: t\ndata:\n  examples: examples.jsonl\n  test: 1.5\n",
        "project/tuneworthy.yaml:4: 'data.test': a share lies between 0 and 1; "
        "a number of rows is written without a dot (got 1.5)",
        "docs/reference/project-file.md lists every key with its values",
    ),
    "half a character": (
        'task: t\ninstruction: "a \\ud83d"\ndata: {examples: examples.jsonl}\n',
        "project/tuneworthy.yaml:2: 'instruction': 'utf-8' codec can't encode character "
        "'\\ud83d' in position 2: surrogates not allowed (got 'a \\ud83d')",
        "docs/reference/project-file.md lists every key with its values",
    ),
}


@pytest.mark.parametrize("case", PROJECT_CASES)
def test_project_files(tuneworthy: Tuneworthy, folder: Path, verb: str, case: str) -> None:
    text, error, hint = PROJECT_CASES[case]
    projects.write(folder, ROWS)
    (folder / "tuneworthy.yaml").write_text(text)
    assert refuses(tuneworthy, folder, verb) == (error, hint)


def test_a_folder_without_a_project_file(tuneworthy: Tuneworthy, folder: Path, verb: str) -> None:
    folder.mkdir()
    assert refuses(tuneworthy, folder, verb) == (
        "project/tuneworthy.yaml: no such project file",
        "tuneworthy init DATA.jsonl writes one from your rows",
    )


def test_settings_of_the_command_line(tuneworthy: Tuneworthy, project: Path) -> None:
    assert refuses(tuneworthy, project, "decide", "--set", "margn=0.1") == (
        "command line: unknown key 'margn'",
        "did you mean 'margin'?",
    )
    assert refuses(tuneworthy, project, "decide", "--set", "task.name=a") == (
        "--set task.name: 'task' has no keys below it",
        "docs/reference/project-file.md lists every key",
    )
    assert refuses(tuneworthy, project, "decide", "--budget", "5x") == (
        "command line: 'budget': a duration is a number and s, m or h, such as 90s, 30m or 4h; "
        "or none (got '5x')",
        "docs/reference/project-file.md lists every key with its values",
    )


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_unknown_and_inapplicable_arms(tuneworthy: Tuneworthy, project: Path, verb: str) -> None:
    assert tuneworthy(verb, "lroa", "project").refusal == (
        "no arm is called 'lroa'",
        "did you mean 'lora'?",
    )
    assert tuneworthy(verb, "rag", "project").refusal == (
        "'rag' does not apply here: the project names no documents (data.documents)",
        "choose another arm",
    )


def test_bases(tuneworthy: Tuneworthy, folder: Path) -> None:
    projects.write(folder, ROWS, base="model")
    model = folder / "model"
    model.mkdir()
    where = f"{model}: "
    assert refuses(tuneworthy, folder) == (
        where + "no *.safetensors in this folder",
        "model.save_pretrained(folder) writes them",
    )
    (model / "pytorch_model.bin").write_bytes(b"\x80")
    assert refuses(tuneworthy, folder) == (
        f"{model}/pytorch_model.bin: pytorch_model.bin is a pickle: "
        "loading it would run the code inside",
        "convert it to safetensors, or use a base that has *.safetensors or *.gguf",
    )
    (model / "model.safetensors").write_bytes(b"")
    (model / "config.json").write_text("{}")
    assert refuses(tuneworthy, folder) == (
        where + "no tokenizer.json in this folder",
        "tokenizer.save_pretrained(folder) writes it",
    )
    assert refuses(tuneworthy, folder, "decide", "--base", "smollm2-135m") == (
        "base: no base model 'smollm2-135m'",
        "did you mean 'smollm2-135m-instruct'?",
    )


METRIC = """def score(answer, reference):
    wanted = len(reference)
    return {0}
"""


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (
            "1 / (wanted - wanted)",
            "metric.py:3: ZeroDivisionError: division by zero on the answer ",
        ),
        ("'much'", "metric.py:1: returned 'much' on the answer "),
        ("7", "metric.py:1: returned 7 on the answer "),
        ("(", "metric.py:3: cannot be loaded: SyntaxError: '(' was never closed"),
    ],
)
def test_a_metric_function_that_raises(
    tuneworthy: Tuneworthy, folder: Path, value: str, error: str
) -> None:
    projects.write(folder, ROWS, metric="python:metric.py:score")
    (folder / "metric.py").write_text(METRIC.format(value))
    said, hint = tuneworthy("decide", "project").refusal
    assert said.startswith(error)
    assert hint.startswith(("in Python, beside metric.py: from metric import score; ", "python "))
    assert not (folder / "runs").exists()


def test_a_metric_that_raises_on_one_answer_keeps_what_was_measured(
    tuneworthy: Tuneworthy, folder: Path
) -> None:
    projects.write(folder, ROWS, metric="python:metric.py:score", arms=["zero-shot"])
    # Completions are scored before the run begins, answers (the prompts, here) later.
    (folder / "metric.py").write_text(
        "def score(answer, reference):\n    return float(answer[0] == '{' or answer['x'])\n"
    )
    error, _ = tuneworthy("decide", "project").refusal
    assert error.startswith("metric.py:2: TypeError: string indices must be integers")
    # Another function is another run: scores of the old one are not mixed with its own.
    (folder / "metric.py").write_text("def score(answer, reference):\n    return 0.5\n")
    assert tuneworthy("decide", "project").code == 0
    assert len(list((folder / "runs").iterdir())) == 2


def test_documents(tuneworthy: Tuneworthy, folder: Path) -> None:
    projects.write(folder, ROWS, data__documents="docs")
    assert refuses(tuneworthy, folder) == (
        "project/docs: no such file or folder, and no file matches it",
        f"look what is there: ls {folder}",
    )
    docs = folder / "docs"
    docs.mkdir()
    kinds = ".md, .markdown, .txt, .html, .htm, .pdf, .docx, .jsonl"
    assert refuses(tuneworthy, folder) == (
        f"project/docs: no documents found (looked for {kinds})",
        "put files there, or set data.documents to where they are",
    )
    (docs / "a.txt").write_bytes(b"first line\ncaf\xe9")
    assert refuses(tuneworthy, folder)[0] == (
        "project/docs/a.txt:2: not UTF-8: byte 0xe9 at offset 14"
    )
    (docs / "a.txt").rename(docs / "a.pdf")
    error, hint = refuses(tuneworthy, folder)
    assert error.startswith("project/docs/a.pdf: not a readable pdf file: ")
    assert hint == "open it and save it again, convert it to txt, or move it out of the folder"


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (
            lambda n, body: (500, {"error": {"message": "out of order"}}),
            "answered with status 500: out of order",
        ),
        (lambda n, body: (401, {"error": {"message": "no"}}), "refused the key (status 401)"),
        (lambda n, body: HANG, "no answer within 0.3 s"),
        (
            lambda n, body: DROP,
            "cannot be reached: peer closed connection without sending complete message body "
            "(received 13 bytes, expected 1000)",
        ),
        (
            lambda n, body: (200, "<html>Welcome to our portal</html>"),
            "did not answer in the OpenAI format: no choices[0].message in "
            "<html>Welcome to our portal</html>",
        ),
        (
            lambda n, body: (200, {"choices": []}),
            "did not answer in the OpenAI format: no choices[0].message in {'choices': []}",
        ),
        (
            lambda n, body: (200, said([1, 2])),
            "did not answer in the OpenAI format: the text is [1, 2]",
        ),
        (
            lambda n, body: (200, {**said("a"), "usage": None}),
            "did not answer in the OpenAI format: no token counts (usage)",
        ),
    ],
    ids=["500", "401", "hangs", "drops", "html", "no choices", "a list", "no usage"],
)
def test_an_endpoint_that_does_not_do_its_part(
    tuneworthy: Tuneworthy,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: fake_endpoint.Behaviour,
    error: str,
) -> None:
    monkeypatch.setenv("TUNEWORTHY_TIMEOUT_SECONDS", "0.3")
    with serving(behaviour) as endpoint:
        projects.write(folder, ROWS, base=f"openai:m@{endpoint.url}")
        got, hint = refuses(tuneworthy, folder)
    assert got == f"{endpoint.url}: {error}"
    expected = {"401": "export OPENAI_API_KEY=…", "0.3 s": "export TUNEWORTHY_TIMEOUT_SECONDS=600"}
    assert hint == next(
        (h for sign, h in expected.items() if sign in error), f"curl {endpoint.url}/models"
    )


def test_an_endpoint_that_goes_away_in_the_middle(
    tuneworthy: Tuneworthy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWORTHY_TIMEOUT_SECONDS", "5")
    there = True

    def behaviour(number: int, body: dict[str, Any]) -> fake_endpoint.Reply:
        return nearest_neighbour(number, body) if there and number != 180 else broken(number)

    def broken(number: int) -> fake_endpoint.Reply:
        nonlocal there
        there = False
        return 503, {"error": {"message": "gone"}}

    with serving(behaviour) as endpoint:
        projects.write(
            folder, ROWS, base=f"openai:m@{endpoint.url}", few_shot__select="fixed",
            data__test=60, data__dev=20, arms=["zero-shot", "few-shot"],
        )  # fmt: skip
        error, hint = tuneworthy("decide", "project").refusal
        assert error == f"{endpoint.url}: answered with status 503: gone"
        assert hint == f"curl {endpoint.url}/models"
        [run] = (folder / "runs").iterdir()
        path = run / "arms" / "few-shot" / "predictions.jsonl"
        before = path.read_text().splitlines()
        # 1 probe, 60 rows of zero-shot, and 2 draws and 2 orders of examples on 20 dev rows came
        # before: up to 8 requests were on their way.
        assert 179 - 141 - 8 <= len(before) < 60
        assert not any(json.loads(line)["failure"] for line in before)
        there, asked = True, len(endpoint.asked)
        assert tuneworthy("decide", "project").code == 0
        assert list((folder / "runs").iterdir()) == [run]
        assert path.read_text().splitlines()[: len(before)] == before
        # What stands was not asked again; sets, for a request may still have been on its way.
        assert len({*endpoint.questions[asked:]} - {PROBE}) == 60 - len(before)


def test_a_read_only_folder(tuneworthy: Tuneworthy, project: Path) -> None:
    (project / "runs").write_text("")  # nobody may make a folder of this, not even root
    error, hint = tuneworthy("decide", "project").refusal
    assert error.startswith("project/runs/.draft-")
    assert error.endswith(": cannot be written: Not a directory")
    assert hint == f"check who may write there: ls -ld {project}"
    assert (project / "runs").read_text() == ""


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NUL", {"prompt": "a \0 b", "completion": "\0"}),
        ("right to left", {"prompt": "כבה את האור \u202e", "completion": "أطفئ الضوء"}),
        ("1 MB", {"prompt": "word " * 200_000, "completion": "x"}),
        ("1 MB in one word", {"prompt": "w" * 1_000_000, "completion": "w" * 1_000_000}),
        ("half a character", {"prompt": "flag \ud83d", "completion": "\udfff"}),
        ("markup", {"prompt": "[/red] :smile: <b>", "completion": "</script><script>"}),
        ("line ends", {"prompt": "a\r\nb\u2028c\x85d", "completion": "e\rf"}),
    ],
)
def test_odd_rows_are_rows(tuneworthy: Tuneworthy, folder: Path, name: str, row: Any) -> None:
    test = [*projects.rows(140)[120:], row]
    projects.write(folder, ROWS, data__test="test.jsonl", data__dev=20, instruction=" ")
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in test))
    start = time.monotonic()
    outcome = tuneworthy("decide", "project", "--arms", "zero-shot,few-shot,lora", "--json")
    assert outcome.code == 0, outcome.err
    assert time.monotonic() - start < 60
    assert "dropped" not in outcome.err or name == "1 MB"
    [run] = (folder / "runs").iterdir()
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").open()]
    record = next(line for line in ledger if line["source"] == "test.jsonl:21")
    if name == "1 MB":  # 200,000 words of the fake base's 4,096
        assert record["reason"] == "too long: 200,002 tokens, context 4,096"
        return
    assert record["split"] == "test"
    assert (record["reason"] is not None) == (name == "half a character")
    answered = [json.loads(line) for line in (run / "arms/lora/predictions.jsonl").open()]
    assert record["id"] in {line["id"] for line in answered}


def test_a_test_file_of_its_own_has_no_row_of_the_training_file(
    tuneworthy: Tuneworthy, folder: Path
) -> None:
    projects.write(folder, ROWS, data__test="test.jsonl", data__dev=20)
    test = projects.rows(140)[100:]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in test))
    assert tuneworthy("decide", "project", "--arms", "zero-shot,lora").code == 0
    [run] = (folder / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "rows.jsonl").open()]
    texts = {
        name: {str(r["messages"]) for r in rows if r["split"] == name}
        for name in ("train", "dev", "test")
    }
    assert len(texts["test"]) == 40
    assert texts["test"].isdisjoint(texts["train"] | texts["dev"])
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").open()]
    assert sum(line["dropped"] == "leak" for line in ledger) >= 20


def test_no_error_is_raised_without_a_hint() -> None:
    """Every raise of our own errors names something to do, in all of the source."""
    import ast

    from tuneworthy import errors

    source = Path(errors.__file__).parent
    found, bare = 0, []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in errors.__all__:
                found += 1
                if "hint" not in {keyword.arg for keyword in node.keywords}:
                    bare.append(f"{path.relative_to(source)}:{node.lineno}")
    assert found > 100
    assert bare == []


def test_wrong_usage_is_2(tuneworthy: Tuneworthy, project: Path) -> None:
    wrong = (
        ["decide", "--nope"],
        ["nope"],
        ["train"],
        ["decide", "project", "more"],
        ["decide", "project", "--set", "margin"],
        ["decide", "project", "--set", "margin=["],
        ["decide", "project", "--require", "lroa"],
    )
    for arguments in wrong:
        outcome = tuneworthy(*arguments)
        assert (outcome.code, outcome.out) == (2, ""), arguments
        assert "Usage: tuneworthy" in outcome.err
        assert "Traceback" not in outcome.err
    assert not (project / "runs").exists()


def test_gates_are_3(tuneworthy: Tuneworthy, project: Path) -> None:
    untrained = ("--arms", "zero-shot,few-shot")
    assert tuneworthy("decide", "project", *untrained, "--require", "few-shot").code == 0
    outcome = tuneworthy("decide", "project", "--require", "lora")
    assert outcome.code == 3
    assert "VERDICT" in outcome.out
    *_, error, hint = outcome.err.splitlines()
    assert error == "error: the verdict is collect-data, not adopt lora"
    assert hint.startswith("hint: read why in project/runs/")
    outcome = tuneworthy("check", "project", "--strict")
    assert outcome.code == 3
    assert outcome.err.splitlines()[-2:] == [
        "error: 1 warning, --strict allows none",
        "hint: mend the rows named above, or check without --strict",
    ]
    assert "warning: 150 training rows, fewer than 1,000" in outcome.out


def test_a_narrow_terminal_of_another_alphabet(project: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "COLUMNS": "40", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "tuneworthy", "decide", str(project), "--arms", "zero-shot"]
    for options in ([], ["--json"]):
        done = subprocess.run(command + options, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode("latin-1")
    assert json.loads(done.stdout)["arms"][0]["arm"] == "zero-shot"
