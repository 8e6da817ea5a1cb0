from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from tuneworthy.errors import MetricError
from tuneworthy.evaluation.metrics import (
    METRICS,
    label_table,
    reads_references,
    resolve,
    summary,
)
from tuneworthy.evaluation.metrics.accuracy import accuracy
from tuneworthy.evaluation.metrics.json_object import JsonObject
from tuneworthy.types import Metric

HERE = Path()
LABELS = ["Urgent", "not urgent", "spam"] * 10
OBJECTS = [json.dumps({"intent": f"i{i % 7}", "slots": {"room": f"r{i}"}}) for i in range(100)]
PROSE = [f"A sentence number {i} that is long enough to be prose, not a label." for i in range(40)]


def metric(name: str, completions: list[str] | None = None, folder: Path = HERE) -> Metric:
    return resolve(name, completions or LABELS, folder)


def every_metric(folder: Path) -> list[Metric]:
    (folder / "own.py").write_text("def same(answer, reference):\n    return answer == reference\n")
    arguments = {"regex": "regex:(?s).*", "python": "python:own.py:same"}
    completions = LABELS + OBJECTS
    return [resolve(arguments.get(name, name), completions, folder) for name in METRICS]


def test_every_metric_of_the_table_keeps_the_contract(tmp_path: Path) -> None:
    metrics = every_metric(tmp_path)
    assert len(metrics) == len(METRICS) == 7
    for each in metrics:
        assert each.name.split(":")[0] in METRICS
        assert each.why == "named in the project file"
        for answer in ("", "spam", "\n", "{", "[]", "x" * 5000, "\ud800", OBJECTS[0], "```"):
            for reference in ("spam", OBJECTS[0]):
                score = each.score(answer, reference)
                assert 0 <= score.value <= 1
                assert each.graded or score.value in (0, 1)
                assert score.parsed or score.value == 0
        for reference in ("spam", OBJECTS[0]):
            assert each.score(reference, reference).value == 1


def test_exact_forgives_case_and_white_space_only() -> None:
    exact = metric("exact")
    assert exact.score("  The\n CAT ", "the cat").value == 1
    assert exact.score("caf\u0065\u0301", "caf\u00e9").value == 1
    assert exact.score("the cat.", "the cat").value == 0


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("urgent", "urgent"),
        (" Not  Urgent. ", "not urgent"),
        ('"spam"', "spam"),
        ("**Spam**\nbecause it sells pills", "spam"),
        ("\n\nspam", "spam"),
        ("not urgent, I think", None),
        ("I think urgent", None),
        ("", None),
        ("...", None),
    ],
)
def test_accuracy_reads_a_label(answer: str, label: str | None) -> None:
    labels = accuracy(LABELS, "")
    assert labels.label(answer) == label
    assert labels.score(answer, "Not urgent").value == float(label == "not urgent")
    assert labels.score(answer, "Not urgent").parsed == (label is not None)


def test_labels_made_of_punctuation_stay_apart() -> None:
    labels = accuracy(["!", "?", "no", "no.", "+"], "")
    assert labels.label("!") == "!"
    assert labels.label("no") == "no"
    assert labels.label("No.") == "no."
    assert labels.label('"no"') == "no"
    assert labels.label("+") == "+"


label = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(label, label), min_size=1))
def test_label_table_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    said, wanted = [p[0] for p in pairs], [p[1] for p in pairs]
    rows = label_table(said, wanted)
    names = [row.label for row in rows]
    precision, recall, f1, n = precision_recall_fscore_support(
        wanted, said, labels=names, zero_division=0.0
    )
    assert set(names) == set(said) | set(wanted)
    assert [row.n for row in rows] == list(n) == sorted(n, reverse=True)
    for i, row in enumerate(rows):
        assert row.precision == (pytest.approx(precision[i]) if row.label in said else None)
        assert row.recall == (pytest.approx(recall[i]) if row.label in wanted else None)
        assert row.f1 == pytest.approx(f1[i])


def test_label_table_counts_an_unparsed_answer_as_a_miss() -> None:
    (row,) = label_table([None, "a"], ["a", "a"])
    assert (row.n, row.precision, row.recall) == (2, 1.0, 0.5)


@pytest.mark.parametrize(
    ("answer", "value", "parsed"),
    [
        ('{"b": [1, {"c": null}], "a": "x"}', 1.0, True),
        ('{"a": "x", "b": [1.0, {"c": null}]}', 1.0, True),
        ('```json\n{"a": "x", "b": [1, {"c": null}]}\n```', 1.0, True),
        ('{"a": "x", "b": [1]}', 2 * 2 / 5, True),
        ('{"a": "x", "b": ["1", {"c": false}]}', 2 * 1 / 6, True),
        ('{"a": "x", "b": [true, {"c": null}]}', 2 * 2 / 6, True),
        ('{"a": "X"}', 0.0, True),
        ("{}", 0.0, True),
        ('Sure: {"a": "x"}', 0.0, False),
        ('{"a": "x"} {"a": "x"}', 0.0, False),
        ('{"a": NaN}', 0.0, False),
        ('["a"]', 0.0, False),
        ('{"a": "x"', 0.0, False),
        ("[" * 100_000, 0.0, False),
        ("", 0.0, False),
    ],
)
def test_json_scores_fields(answer: str, value: float, parsed: bool) -> None:
    score = JsonObject("").score(answer, '{"a": "x", "b": [1, {"c": null}]}')
    assert (score.value, score.parsed) == (pytest.approx(value), parsed)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


@settings(deadline=None)
@given(json_objects, json_objects)
def test_json_is_one_for_the_same_object_only_and_symmetric(a: dict, b: dict) -> None:
    judge = JsonObject("")
    one, other = json.dumps(a), json.dumps(b)
    assert judge.score(json.dumps(a, indent=3), one).value == 1
    there, back = judge.score(one, other).value, judge.score(other, one).value
    assert there == back
    assert (there == 1) == (normal(a) == normal(b))


def normal(value: object) -> str:
    """A JSON value as text that tells 1 from true but not from 1.0."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{k!r}:{normal(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(normal, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)


def test_json_without_any_object_is_refused() -> None:
    with pytest.raises(MetricError, match="none of 30 completions is a JSON object"):
        metric("json")


def test_chrf_is_sacrebleu_over_100() -> None:
    from sacrebleu.metrics import CHRF

    answer, reference = "the cat sat on a mat", "a cat sits on the mat"
    wanted = CHRF().sentence_score(answer, [reference]).score / 100
    assert metric("chrf").score(answer, reference).value == pytest.approx(wanted)
    assert metric("chrf").score("", "").value == 1
    assert metric("chrf").score("", "x").value == 0


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_rouge_l_is_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    wanted = 2 * longest(0, 0) / (len(a) + len(b)) if a or b else 1
    score = metric("rouge_l").score(" ".join(a).upper(), "  ".join(b))
    assert score.value == pytest.approx(wanted)


def test_regex_matches_the_whole_answer() -> None:
    number = metric(r"regex:\d+")
    assert number.score(" 42\n", "irrelevant").value == 1
    assert number.score("42 apples", "42 apples").value == 0
    assert metric(r"regex:a:b").score("a:b", "").value == 1


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("acuracy", "unknown metric 'acuracy'", "did you mean 'accuracy'?"),
        ("judge:gpt", "unknown metric 'judge:gpt'", "known: auto, exact,"),
        ("regex:(", "at character 1", "regex"),
        ("regex", "needs something after a colon", r"regex:\d+"),
        ("regex:", "needs something after a colon", r"regex:\d+"),
        ("exact:", "takes no colon", "metric: exact"),
        ("exact:x", "takes no colon", "metric: exact"),
        ("python:own.py", "not FILE.py:FUNC", "python:metric.py:score"),
        ("python:none.py:f", "no such file", "ls "),
    ],
)
def test_a_wrong_name_says_what_is_meant(name: str, message: str, hint: str) -> None:
    with pytest.raises(MetricError) as caught:
        metric(name)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def own(folder: Path, code: str, function: str = "score") -> Metric:
    (folder / "own.py").write_text(code)
    return metric(f"python:own.py:{function}", folder=folder)


@pytest.mark.parametrize(
    ("returned", "value"),
    [("True", 1), ("0.25", 0.25), ("1", 1), ("np.bool_(False)", 0), ("np.float32(0.5)", 0.5)],
)
def test_python_takes_numbers_and_bools(tmp_path: Path, returned: str, value: float) -> None:
    code = f"import numpy as np\ndef score(answer, reference):\n    return {returned}\n"
    assert own(tmp_path, code).score("a", "b").value == value


@pytest.mark.parametrize("returned", ["None", "'1'", "1.5", "-0.1", "float('nan')", "[1]"])
def test_python_refuses_what_is_no_score(tmp_path: Path, returned: str) -> None:
    judge = own(tmp_path, f"import re\n\ndef score(answer, reference):\n    return {returned}\n")
    with pytest.raises(MetricError, match=r"^own\.py:3: returned .* on the answer 'why'"):
        judge.score("why", "b")


def test_python_names_the_line_that_raised(tmp_path: Path) -> None:
    code = (
        "import json\n\ndef helper(text):\n    return json.loads(text)\n\n"
        "def score(answer, reference):\n    return helper(answer) == 1\n"
    )
    judge = own(tmp_path, code)
    with pytest.raises(MetricError) as caught:
        judge.score("x" * 500, "b")
    assert str(caught.value).startswith("own.py:4: JSONDecodeError: Expecting value")
    assert len(str(caught.value)) < 200
    assert "from own import score" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(:\n", "own.py:1: cannot be loaded: SyntaxError"),
        ("x = 1\nimport not_there_at_all\n", "own.py:2: cannot be loaded: ModuleNotFoundError"),
        ("def scores(a, b):\n    return 1\n", "own.py: no function is called 'score'"),
        ("score = 1\n", "own.py: no function is called 'score'"),
    ],
)
def test_python_that_cannot_be_loaded(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(MetricError) as caught:
        own(tmp_path, code)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("completions", "name", "why"),
    [
        (OBJECTS, "json", "100 of 100 completions are JSON objects"),
        (OBJECTS[:95] + PROSE[:5], "json", "95 of 100"),
        (LABELS, "accuracy", "30 completions hold only 3 different labels of at most 2 words"),
        ([f"city {i}" for i in range(60)], "exact", "at most 2 words, and 60 of them differ"),
        (PROSE, "chrf", "14 words or more: free text"),
        (OBJECTS[:94] + PROSE[:6], "chrf", "free text"),
    ],
)
def test_auto_says_what_it_saw(completions: list[str], name: str, why: str) -> None:
    if name == "chrf" and completions[0].startswith("{"):
        # Objects of few words are short answers: make them long.
        completions = [c.replace(":", " : ") for c in completions]
    completions = random.Random(0).sample(completions, len(completions))
    chosen = metric("auto", completions)
    assert chosen.name == name
    assert why in chosen.why


def test_which_metrics_read_references(tmp_path: Path) -> None:
    judges = every_metric(tmp_path)
    blind = [m.name for m in judges if not reads_references(m, LABELS + OBJECTS)]
    assert blind == ["regex:(?s).*"]
    assert reads_references(metric("exact"), ["same"] * 30)
    code = "def score(answer, reference):\n    return len(answer) < 9\n"
    assert not reads_references(own(tmp_path, code), LABELS)


def test_no_completions_is_an_error() -> None:
    with pytest.raises(MetricError, match="no completions"):
        resolve("auto", [], HERE)


def test_summary_of_json_and_labels() -> None:
    pairs = [(OBJECTS[0], OBJECTS[0]), ("nothing", OBJECTS[1]), (OBJECTS[0], OBJECTS[7])]
    figures = summary(metric("json", OBJECTS), pairs)
    assert figures["n"] == 3
    assert figures["mean"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert figures["parsed_share"] == pytest.approx(2 / 3)
    assert figures["exact_share"] == pytest.approx(1 / 3)

    figures = summary(metric("accuracy"), [("urgent", "Urgent"), ("?", "spam")])
    assert figures["mean"] == 0.5
    assert [row["label"] for row in figures["labels"]] == ["spam", "urgent"]
    assert figures["labels"][1]["recall"] == 1
    json.dumps(figures)

    assert summary(metric("exact"), []) == {"n": 0, "mean": None, "parsed_share": None}
