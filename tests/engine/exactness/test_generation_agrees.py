"""Batched, padded, sharing a beginning or packed: float32 says what one row at a time says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import learning, tiny
from tuneworthy import store
from tuneworthy.engine import generation, open_engine, runner
from tuneworthy.engine.local import LocalEngine
from tuneworthy.engine.models import load_causal
from tuneworthy.engine.packing import TokenRow
from tuneworthy.errors import FetchError, MissingExtra
from tuneworthy.examples import build
from tuneworthy.types import Decoding, Message

END = 2


def alone(model: Any, prompts: Sequence[list[int]], tokens: int, end: int = END) -> list[list[int]]:
    """transformers' own greedy decoding, one row at a time."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )[0, len(prompt) :].tolist()
        found.append(said[: said.index(end)] if end in said else said)
    return found


def batched(
    model: Any, prompts: Sequence[list[int]], tokens: int, end: int = END
) -> list[list[int]]:
    """Ours; the ids said are taken out of the "text"."""
    found: list[list[int]] = [[]] * len(prompts)

    def keep(position: int, answer: Any) -> None:
        found[position] = [int(number) for number in answer.text.split()]
        assert (answer.finish_reason == "stop") == (len(found[position]) < tokens)

    with runner.opened(model) as running:
        assert isinstance(running, runner.Quick)
        scheduler = generation.Scheduler(
            running,
            stop_ids=frozenset([end]),
            stop=(),
            decode=lambda ids: " ".join(map(str, ids)),
            on_answer=keep,
        )
        decoding = Decoding(max_tokens=tokens)
        scheduler.add(generation.Row(i, list(ids), decoding) for i, ids in enumerate(prompts))
        while scheduler.busy:
            scheduler.step()
    return found


def prompts(shared: int) -> list[list[int]]:
    dice = random.Random(shared)
    rows = learning.rows([dice.randint(2, 40) for _ in range(40)], shared=shared)
    return [row.ids for row in rows]


@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize(("kind", "kernels_here"), tiny.WAYS, indirect=["kernels_here"])
def test_batches_say_what_single_rows_say(kind: str, kernels_here: bool, shared: int) -> None:
    model, asked = tiny.model(kind), prompts(shared)
    window = getattr(model.config, "sliding_window", None)
    assert window is None or max(map(len, asked)) > 2 * window
    assert len({len(ids) for ids in asked}) > 10  # padding is exercised
    assert batched(model, asked, 10) == alone(model, asked, 10)


@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packs_know_which_completions_decoding_would_give_back(
    kind: str, method: str, shared: int
) -> None:
    model, asked = tiny.model(kind), prompts(shared)[:16]
    said = alone(model, asked, 10)
    rows = [TokenRow([*p, *s], len(p)) for p, s in zip(asked, said) if s]
    assert len(rows) > 10
    changed = [
        TokenRow([*row.ids[:-1], (row.ids[-1] + 1) % 400], row.prompt_length) for row in rows
    ]
    learnt = learning.prepared(kind, method, rank=1)
    for name, parameter in learnt.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    with learning.learning(learnt, rows, pack_tokens=100) as learner:
        assert all(row.verbatim for row in learner.losses(rows))
        assert not any(row.verbatim for row in learner.losses(changed))


@pytest.mark.model
@pytest.mark.timeout(900)
def test_how_often_sixteen_bits_flip_an_answer(
    model_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        folder = build("home-commands", tmp_path / "example", lambda line: None)
    except (FetchError, MissingExtra) as error:
        pytest.skip(f"the example is not here: {error}")
    engine = open_engine("smollm2-135m-instruct", tmp_path, lambda text: None)
    assert isinstance(engine, LocalEngine)
    rows = store.read_jsonl(folder / "examples.jsonl")[:20]
    asked = [engine.chat.encode((Message("user", row["prompt"]),)) for row in rows]
    [end] = engine.chat.end_ids
    exact = engine._model(None)
    truth = alone(exact, asked, 12, end)
    assert batched(exact, asked, 12, end) == truth
    short = load_causal(engine.located.folder, torch.bfloat16).eval()
    single, together = (way(short, asked, 12, end) for way in (alone, batched))
    flips = {
        "bfloat16 against float32, one row at a time": differing(single, truth),
        "bfloat16, batched against one row at a time": differing(together, single),
    }
    assert len(asked) == 20
    assert all(0 <= share <= 1 for share in flips.values())
    with capsys.disabled():
        print("".join(f"\n{name}: {share:.0%} of answers differ" for name, share in flips.items()))


def differing(some: Sequence[Any], others: Sequence[Any]) -> float:
    """Share of positions at which two lists of answers differ."""
    return sum(a != b for a, b in zip(some, others, strict=True)) / len(some)
