"""What is learnt is the completion and its end: every token of it, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import learning, tiny
from tuneworthy.engine import open_engine
from tuneworthy.engine.chat import ChatFormat
from tuneworthy.engine.learner import make_packs
from tuneworthy.engine.local import LocalEngine
from tuneworthy.engine.packing import TokenRow, pack
from tuneworthy.errors import ModelError
from tuneworthy.types import Message

COMPLETIONS = ["on", "", "  two\n\nlines ", "l'été — 5 °C 💡", '{"light": "on"}', "the the the"]
CHATS = {
    "chat": ChatFormat(tiny.tokenizer()),
    "plain": ChatFormat(tiny.tokenizer(None)),
    "bos": ChatFormat(tiny.tokenizer(None, bos=True)),
}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", CHATS)
def test_labels_decode_to_the_completion_and_its_end(kind: str, share: bool) -> None:
    chat, rows, said = CHATS[kind], [], {}
    for i, completion in enumerate(COMPLETIONS):
        prompt = (Message("system", "turn the kitchen light on " * 4), Message("user", "x" * i))
        rows.append(TokenRow(*chat.encode_pair(prompt, completion)))
        said[id(rows[-1])] = completion
    laid = pack(rows, share=share)
    assert (laid.prefix > 0) == share
    targets = laid.targets_L.split(laid.label_counts)
    for row, labels in zip(laid.order, targets):
        *completion, end = labels.tolist()
        assert end in chat.stop_ids and not chat.stop_ids & set(completion)
        lead = "" if chat.template else " "
        assert chat.decode(completion) == lead + said[id(row)]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    shared=st.sampled_from([0, 20]),
    tokens=st.sampled_from([0, 1, 70, 4096]),
)
def test_a_token_before_each_label_predicts_it(
    lengths: list[int], shared: int, tokens: int
) -> None:
    rows = learning.rows(lengths, shared=shared, seed=sum(lengths))
    packs = make_packs(rows, tokens)
    assert sorted(id(r) for p in packs for r in p.order) == sorted(map(id, rows))
    for laid in packs:
        first = {place for group in laid.groups for place in group.first_token}
        predicted = laid.label_positions_L + 1
        assert not first & set(predicted.tolist())
        assert laid.ids_T[predicted].equal(laid.targets_L)
        assert len(set(predicted.tolist())) == len(predicted) == sum(laid.label_counts)
        for row, labels, places in zip(
            laid.order,
            laid.targets_L.split(laid.label_counts),
            laid.positions_T[predicted].split(laid.label_counts),
        ):
            assert labels.tolist() == row.ids[row.prompt_length :]
            assert places.tolist() == list(range(row.prompt_length, len(row.ids)))


def test_a_long_shared_beginning_does_not_cut_the_rest_into_more_packs() -> None:
    """Each further pack would compute it once more."""
    rows = learning.rows([30] * 8, shared=500, seed=1)
    [pack] = make_packs(rows, 300)
    assert (pack.prefix, pack.tokens) == (500, 500 + 8 * 30)
    packs = make_packs(rows, 130)
    assert [pack.tokens for pack in packs] == [500 + 4 * 30] * 2


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """Takes rows of ids where others take prompts and completions."""
    opened = open_engine(str(tiny.save(tmp_path / "base")), tmp_path, lambda text: None)
    assert isinstance(opened, LocalEngine)
    monkeypatch.setattr(opened, "_tokens", lambda row: row)
    return opened


def test_rows_without_labels_are_counted_and_change_nothing(
    engine: LocalEngine, tmp_path: Path
) -> None:
    rows = [(row,) for row in learning.rows()]
    empty = [(replace(row, prompt_length=len(row.ids)),) for (row,) in rows[:3]]
    found = [
        engine.train(some, rows[:2], learning.settings(), tmp_path / name, report=lambda k, f: None)  # type: ignore[arg-type]
        for name, some in (("without", rows), ("with", [*empty[:1], *rows, *empty[1:]]))
    ]
    assert [(r.rows, r.rows_without_labels) for r in found] == [(8, 0), (8, 3)]
    assert found[0].history == found[1].history
    with pytest.raises(ModelError) as caught:
        engine.train(empty, rows, learning.settings(), tmp_path / "m", report=lambda k, f: None)  # type: ignore[arg-type]
    assert str(caught.value) == "no row has a token to learn from"
    assert caught.value.hint == "tuneworthy check shows why"
    assert not (tmp_path / "m").exists()
