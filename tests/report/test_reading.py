import pytest

from tuneworthy.errors import StorageError
from tuneworthy.report.reading import ArmRecords, drops, mean_score, read_run, tallies
from tuneworthy.store import RunFolder

from .sample_run import write_sample


def arm(name, scores):
    return ArmRecords(name, {str(i): {"score": s} for i, s in enumerate(scores)}, None)


def test_tallies_leave_out_failed_rows_and_forgive_the_last_digit():
    a, b = arm("a", [1.0, 0.0, 0.5, None, 0.1 + 0.2]), arm("b", [0.0, 1.0, 0.5, 1.0, 0.3])
    found = tallies([a, b])
    assert found["a", "b"] == (1, 1, 2)
    assert found["b", "a"] == (1, 1, 2)


def test_mean_score_is_none_before_the_first_row():
    assert mean_score(arm("a", [])) is None
    assert mean_score(arm("a", [None])) is None
    assert mean_score(arm("a", [1.0, None, 0.5])) == 0.75


def test_drops_are_counted_by_reason_with_the_first_as_example():
    ledger = [
        {"dropped": None, "source": "a:1", "reason": None},
        {"dropped": "empty", "source": "a:2", "reason": "empty completion"},
        {"dropped": "duplicate", "source": "a:3", "reason": "of a:1"},
        {"dropped": "duplicate", "source": "a:4", "reason": "of a:1"},
    ]
    assert drops(ledger) == [("duplicate", 2, "a:3: of a:1"), ("empty", 1, "a:2: empty completion")]


def test_arms_stand_in_the_order_of_the_decision(tmp_path):
    finished = read_run(write_sample(tmp_path / "a", rows=40))
    scores = {entry["arm"]: entry["score"] for entry in finished.decision["arms"]}
    means = [scores[entry.name] for entry in finished.arms]
    assert means == sorted(means, reverse=True)
    unfinished = read_run(write_sample(tmp_path / "b", rows=40, finished=False))
    assert [entry.name for entry in unfinished.arms][:2] == ["zero-shot", "system-prompt"]
    assert unfinished.decision is None


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(StorageError, match=r"config\.json: no such file"):
        read_run(RunFolder(tmp_path))
