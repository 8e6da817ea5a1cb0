from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers_generate as peer
from transformers_generate import Contender

from tests.fakes import tiny

TOKENS = 5
PROMPTS = [[7, 8, 9, 20 + i, *range(30, 30 + 2 * i)] for i in range(4)]
LABELS = [[41, 42, 2], [43, 2], [44, 45, 46, 2]]
ROWS = [{"ids": ids, "labels": LABELS} for ids in PROMPTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def contender(folder: Path) -> Contender:
    return Contender(str(folder), "float32")


class Rates:
    """A peer whose rate is a product; remembers what it was asked."""

    def __init__(self, **factors: float) -> None:
        self.factors = factors
        self.tried: list[tuple[str, str, int]] = []

    def __call__(self, setting: dict[str, Any]) -> float:
        self.tried.append((setting["number_format"], setting["way"], setting["size"]))
        rate = 1.0
        for key in (setting["number_format"], setting["way"], f"size{setting['size']}"):
            rate *= self.factors.get(key, 1.0)
        return rate


def searched(rates: Rates) -> list[tuple[str, str, int]]:
    peer.search(rates, ("bfloat16", "float32"), ("dynamic", "static", "kept"), (16, 32, 64, 8))
    return rates.tried


def test_search_goes_on_with_the_best() -> None:
    tried = searched(Rates(float32=2.0, size32=1.5))
    assert tried[:2] == [("bfloat16", "dynamic", 16), ("float32", "dynamic", 16)]
    assert tried[2:5] == [("float32", "dynamic", size) for size in (32, 64, 8)]
    assert tried[5:] == [("float32", "static", 32), ("float32", "kept", 32)]


def test_sizes_larger_than_a_slow_one_are_left_out() -> None:
    sizes = [size for _, way, size in searched(Rates(size32=0.9)) if way == "dynamic"]
    assert sizes == [16, 16, 32, 8]


def test_another_way_that_is_better_may_have_larger_batches() -> None:
    tried = searched(Rates(kept=1.2, size8=1.01))
    assert tried[-4:] == [("bfloat16", "kept", size) for size in (8, 16, 32, 64)]


def test_batches_are_of_like_lengths() -> None:
    assert peer.batches([5, 1, 4, 2, 3], 2) == [[1, 3], [4, 2], [0]]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 1), ([[1, 2], [1, 2]], 1), ([[1], [2]], 0)],
)
def test_a_shared_beginning_leaves_something_of_each_row(
    prompts: list[list[int]], length: int
) -> None:
    assert peer.shared_length(prompts) == length


@pytest.mark.parametrize("way", ["dynamic", "static", "kept"])
def test_every_way_answers_what_a_row_alone_is_answered(contender: Contender, way: str) -> None:
    alone = [contender.answer([ids], "dynamic", TOKENS, None)[0] for ids in PROMPTS]
    kept = contender.keep(PROMPTS) if way == "kept" else None
    assert contender.answer(PROMPTS, way, TOKENS, kept) == alone
    if kept:
        assert kept[0] == PROMPTS[0][:3]
        assert contender.answer(PROMPTS, way, TOKENS, kept) == alone, "what is kept stays as it is"
    assert [len(ids) for ids in alone] == [TOKENS] * len(PROMPTS)


def test_no_token_ends_a_row_early(contender: Contender) -> None:
    first = contender.answer(PROMPTS[:1], "dynamic", 1, None)[0][0]
    contender.model.config.eos_token_id = first
    assert len(contender.answer(PROMPTS[:1], "dynamic", TOKENS, None)[0]) == TOKENS


@pytest.mark.parametrize("way", ["pairs", "reused"])
def test_scores_are_the_sums_of_log_probabilities(contender: Contender, way: str) -> None:
    import torch

    found = contender.score(ROWS, way)
    for ids, scores in zip(PROMPTS, found, strict=True):
        for label, score in zip(LABELS, scores, strict=True):
            logits = contender.model(torch.tensor([ids + label])).logits[0].log_softmax(-1)
            wanted = sum(logits[len(ids) - 1 + i, token].item() for i, token in enumerate(label))
            assert score == pytest.approx(wanted, abs=1e-4)


def run(job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """What the contender tells."""
    (tmp_path / "rows.json").write_text(
        json.dumps({"warm": ROWS[:1], "measured": ROWS, "exact": ROWS}), encoding="utf-8"
    )
    (tmp_path / "job.json").write_text(
        json.dumps({**job, "rows": str(tmp_path / "rows.json")}), encoding="utf-8"
    )
    peer.main(str(tmp_path / "job.json"))
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line[2:]) for line in lines if line.startswith("@ ")]


def test_trials_are_told_as_they_stand(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"mode": "search", "workload": "shared", "model": str(folder), "tokens": TOKENS}
    space = {"number_formats": ["float32"], "ways": ["dynamic", "kept"], "sizes": [2]}
    *told, last = run(job | space, tmp_path, capsys)
    assert [event["trial"]["way"] for event in told] == ["dynamic", "kept"]
    assert last["done"]["trials"] == [event["trial"] for event in told]
    assert all(trial["rate"] > 0 for trial in last["done"]["trials"])


@pytest.mark.parametrize(("workload", "way"), [("shared", "kept"), ("labels", "reused")])
def test_all_rows_are_measured_in_their_order(
    workload: str,
    way: str,
    contender: Contender,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting = {"number_format": "float32", "way": way, "size": 3}
    job = {"mode": "measure", "workload": workload, "model": str(folder), "tokens": TOKENS}
    *told, last = run({**job, "setting": setting}, tmp_path, capsys)
    assert told[-1] == {"rows": 4, "of": 4}
    done = last["done"]
    assert done["seconds"] > 0 and done["peak_mb"] > 0
    if workload == "labels":
        for row, scores in zip(ROWS, done["scores"], strict=True):
            assert scores == pytest.approx(contender.score([row], "pairs")[0], abs=1e-4)
    else:
        assert [count for _, count in done["answers"]] == [TOKENS] * 4


def test_one_at_a_time_ends_where_the_model_does(
    contender: Contender, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = contender.answer(PROMPTS[:1], "dynamic", TOKENS, None)[0]
    job = {"mode": "one at a time", "workload": "exact", "model": str(folder), "part": "exact"}
    job |= {"tokens": TOKENS, "stop_ids": [ids[2]]}
    text, count = run(job, tmp_path, capsys)[-1]["done"]["answers"][0]
    assert count == ids.index(ids[2])
    assert text == tiny.tokenizer().decode(ids[:count], skip_special_tokens=True)
