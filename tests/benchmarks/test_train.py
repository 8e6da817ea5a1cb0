from __future__ import annotations

import re
from pathlib import Path

import _common
import pytest
import train
import trl_train
from _common import ContenderFailed
from _workloads import WORKLOADS, Row
from train import Run

ROOT = Path(__file__).parents[2]
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "num_hidden_layers": 30,
    "vocab_size": 49_152,
}


def step(seconds: float, tokens: int = 10, dev_loss: float | None = None) -> dict:
    return {"seconds": seconds, "tokens": tokens, "dev_loss": dev_loss}


def test_linear_parameters_and_the_embedding_make_the_model() -> None:
    norms = 61 * 576
    linear = train.linear_parameters(SMOLLM2)
    assert linear == 106_168_320
    assert linear + 49_152 * 576 + norms == 134_515_008  # what the model is published with


def test_products_are_counted_forward_and_for_the_inputs() -> None:
    assert train.product_flops(SMOLLM2, 1, 0) == 4 * 106_168_320
    assert train.product_flops(SMOLLM2, 0, 1) == 4 * 49_152 * 576


def test_a_rate_is_of_all_tokens_and_all_seconds() -> None:
    assert Run([step(1.0, 100), step(3.0, 100)]).rate == 50.0


def test_the_clock_stands_still_between_steps() -> None:
    run = Run([step(1.0), step(2.0, dev_loss=1.5), step(3.0), step(4.0, dev_loss=1.2)])
    assert run.evaluations == [(3.0, 1.5), (10.0, 1.2)]
    assert [run.seconds_to(loss) for loss in (1.6, 1.5, 1.3, 1.1)] == [3.0, 3.0, 10.0, None]


def test_rows_left_out_are_found() -> None:
    rows = [Row("", "", "", [1, 2, 3], 2), Row("", "", "", [1, 2], 1)]
    train._check_rows({"whole": Run([step(1.0, 3), step(1.0, 2)])}, rows)
    with pytest.raises(ContenderFailed, match="part: trained on 3 tokens where the rows have 5"):
        train._check_rows({"part": Run([step(1.0, 3)])}, rows)


def test_another_idea_of_loss_is_found() -> None:
    def started(loss: float) -> Run:
        return Run(done={"dev_loss_before": loss})

    train._check_start(started(1.50), started(1.52))
    with pytest.raises(ContenderFailed, match=r"1\.500 and 1\.600"):
        train._check_start(started(1.5), started(1.6))


def test_all_pieces_are_planned() -> None:
    names = list(WORKLOADS)
    whole, alone = train.planned(names, False, True), train.planned(names, False, False)
    assert set(alone) < set(whole)
    assert len(alone) == 3 * len(names)  # ours twice, and once to a loss
    assert sum(train.planned(names, True, True).values()) < sum(whole.values()) < 75 * 60


def test_screening_takes_short_and_long_in_due_proportion() -> None:
    lengths = list(range(1, 101))
    order = lengths[::-1]
    weights = [0, *lengths]
    taken = trl_train.thinned(order, weights, 10, 1_000)
    assert len(taken) == 20
    assert taken == [*range(80, 70, -1), *range(30, 20, -1)], "order is kept, whole micro-batches"
    assert trl_train.thinned(order, weights, 10, 1) == list(range(60, 50, -1))
    assert trl_train.thinned(order, weights, 10, 10**9) == order


def test_a_pack_gives_its_rows_back() -> None:
    pack = {
        "input_ids": [5, 6, 7, 8, 9],
        "completion_mask": [0, 1, 0, 0, 1],
        "seq_lengths": [2, 3],
    }
    assert trl_train.unpacked(pack) == [
        {"ids": [5, 6], "prompt_length": 1},
        {"ids": [7, 8, 9], "prompt_length": 2},
    ]


def test_make_runs_the_scripts_and_no_helper() -> None:
    loop = re.search(r"^bench:.*\n\t.*in (benchmarks/\S+);", (ROOT / "Makefile").read_text(), re.M)
    assert loop
    scripts = [path.name for path in ROOT.glob(loop[1])]
    assert "train.py" in scripts and not any(name.startswith("_") for name in scripts)


def test_the_peer_computes_with_our_torch() -> None:
    pins = (ROOT / "benchmarks" / "peers" / "trl.txt").read_text("utf-8").splitlines()
    packages = [line for line in pins if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in packages)
    ours = _common.versions(["torch", "transformers"])
    assert f"torch=={ours['torch'].partition('+')[0]}" in packages
    assert f"transformers=={ours['transformers']}" in packages
