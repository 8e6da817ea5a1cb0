"""Training is cut to the memory there is, and says so where nothing fits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import tiny
from tuneworthy.engine import memory
from tuneworthy.errors import ModelError

GB = 2**30
LORA = 10_000
"""Trained parameters."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model()


def room_for(model: Any, tokens: int, *, checkpointing: bool = False) -> int:
    """Free bytes that just suffice for packs of so many tokens."""
    need = memory.estimate(model, LORA, tokens, checkpointing=checkpointing, longest=100)
    return int(need / memory.MARGIN) + 2


@pytest.mark.parametrize(
    ("tokens", "checkpointing"),
    [(2048, False), (1024, False), (512, False), (1024, True), (512, True)],
)
def test_packs_are_as_large_as_fit(
    model: Any, tokens: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PROGRAM_BYTES", 0)
    room = room_for(model, tokens, checkpointing=checkpointing)
    found = memory.fit(model, LORA, 100, room, "lora")
    assert (found.pack_tokens, found.checkpointing) == (tokens, checkpointing)
    assert found.bytes <= room * memory.MARGIN
    less = memory.fit(model, LORA, 100, room - 10, "lora") if tokens > 512 else None
    assert less is None or (less.pack_tokens, less.checkpointing) == (tokens // 2, checkpointing)


def test_what_all_rows_begin_with_stands_beside_the_packs(model: Any) -> None:
    """It is in each pack once, so that a long one does not make the packs of the rest smaller."""
    need = memory.estimate(model, LORA, 512 + 3000, longest=3050)
    room = int(need / memory.MARGIN) + 2
    found = memory.fit(model, LORA, 3050, room, "lora", shared=3000)
    assert (found.pack_tokens, found.checkpointing, found.bytes) == (512, False, need)
    assert memory.fit(model, LORA, 3050, room, "lora").pack_tokens == memory.PACK_TOKENS


def test_weights_lie_in_another_order_where_there_is_room_for_them(model: Any) -> None:
    """Beside the largest packs: smaller ones would cost more than the order saves."""
    need = memory.estimate(model, LORA, memory.PACK_TOKENS, longest=100)
    room = int((need + GB) / memory.MARGIN) + 2
    roomy = memory.fit(model, LORA, 100, room, "lora", copies=GB)
    assert (roomy.copies, roomy.bytes, roomy.pack_tokens) == (True, need + GB, memory.PACK_TOKENS)
    narrow = memory.fit(model, LORA, 100, room - 10, "lora", copies=GB)
    assert (narrow.copies, narrow.bytes) == (False, need)
    assert not memory.fit(model, LORA, 100, room, "lora").copies


def test_much_room_gives_large_packs_and_no_more(model: Any) -> None:
    found = memory.fit(model, LORA, 100, 500 * GB, "lora")
    assert (found.pack_tokens, found.checkpointing) == (memory.PACK_TOKENS, False)


def test_a_long_row_needs_room_whatever_the_packs(model: Any) -> None:
    room = room_for(model, 512)
    assert memory.fit(model, LORA, 100, room, "lora").pack_tokens == 512
    short, long = (
        memory.estimate(model, LORA, length, longest=length) for length in (1000, 100_000)
    )
    assert long > short + 99_000 * 4 * 48


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ("lora", "lora.method: qlora on a GPU (4-bit weights)"),
        ("full", "the arm lora, which has no optimizer for the base's weights"),
    ],
)
def test_where_nothing_fits_the_need_is_told(model: Any, method: str, instead: str) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    with pytest.raises(ModelError) as caught:
        memory.fit(model, parameters, 100, GB // 4, method)
    assert str(caught.value) == (
        f"{method} needs about 0.6 GB (estimate) even with the smallest packs and activations "
        "computed twice; 0.2 GB are free"
    )
    assert caught.value.hint == f"train a smaller base, or {instead}"


def test_what_is_counted(model: Any) -> None:
    import torch

    parameters = sum(p.numel() for p in model.parameters())
    base = memory.estimate(model, 0, 0)
    assert memory.estimate(model, 100, 0) - base == 100 * 12
    # Sixteen bits: half the weights; a full fine-tuning keeps masters and sixteen-bit gradients.
    short = tiny.model().to(torch.bfloat16)
    assert memory.estimate(short, 100, 0) - memory.estimate(short, 0, 0) == 100 * 12
    full = memory.estimate(short, parameters, 0) - memory.estimate(short, 0, 0)
    assert full == parameters * (12 + 4 + 2)
    a_token = memory.estimate(model, 0, 1) - base
    twice = memory.estimate(model, 0, 2, checkpointing=True) - memory.estimate(
        model, 0, 1, checkpointing=True
    )
    assert twice < a_token
