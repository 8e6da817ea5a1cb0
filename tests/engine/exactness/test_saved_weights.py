"""What is loaded from disk answers as what was trained, for every method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import learning, tiny
from tuneworthy.engine import adapters, open_engine, packing
from tuneworthy.engine.learner import PackedModel
from tuneworthy.engine.local import LocalEngine
from tuneworthy.engine.models import load_causal
from tuneworthy.errors import ModelError
from tuneworthy.types import Decoding, Message, Weights

METHODS = (*adapters.METHODS, "full")
HELLO = [(Message("user", "light"),)]


def opened(folder: Path) -> LocalEngine:
    engine = open_engine(str(folder), folder, lambda text: None)
    assert isinstance(engine, LocalEngine)
    return engine


def logits(packed: PackedModel, rows: Any) -> torch.Tensor:
    packed.eval()
    with torch.no_grad():
        return packed.label_logits(packing.pack(rows))


def saved(engine: LocalEngine, method: str, target: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The live model's logits before training and after three steps; its weights in `target`."""
    rows, chosen = learning.rows(), learning.settings(method, learning_rate=1e-2)
    model = load_causal(engine.located.folder, torch.float32)
    with learning.learning(model, rows) as learner:
        before = logits(learner.packed, rows)
    model = adapters.prepare(load_causal(engine.located.folder, torch.float32), chosen)
    with learning.learning(model, rows, chosen) as learner:
        for _ in range(3):
            learner.step(rows, 1e-2)
        live = logits(learner.packed, rows)
    adapters.save(model, target, chosen, engine.base.sha256)
    return before, live


@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", METHODS)
def test_loaded_weights_are_the_live_ones(method: str, tied: bool, tmp_path: Path) -> None:
    if method == "qlora" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    engine = opened(tiny.save(tmp_path / "base", tied=tied))
    before, live = saved(engine, method, tmp_path / "m")
    assert (live - before).abs().max() > 0.05
    rows = learning.rows()
    weights = Weights("full" if method == "full" else "adapter", tmp_path / "m")
    if method == "full":
        engine.chat.tokenizer.save_pretrained(tmp_path / "m")
    model = engine._model(weights)
    order = packing.pack(rows).order
    found = torch.cat([learning.logits_and_targets(model, row)[0] for row in order])
    torch.testing.assert_close(found, live, rtol=0, atol=1e-4)
    # The base is as it was: its own logits are those from before.
    base = engine._model(None)
    again = torch.cat([learning.logits_and_targets(base, row)[0] for row in order])
    torch.testing.assert_close(again, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", adapters.MOVES_THE_BASE)
def test_an_adapter_that_moved_its_base_is_plain_lora_on_disk(method: str, tmp_path: Path) -> None:
    import peft

    engine = opened(tiny.save(tmp_path / "base"))
    saved(engine, method, tmp_path / "m")
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "m"))
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 16, True)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_weights_refuse_another_base(kind: Any, tmp_path: Path) -> None:
    engine, other = (opened(tiny.save(tmp_path / str(i), seed=i)) for i in range(2))
    target = tmp_path / "m"
    saved(engine, "full" if kind == "full" else "lora", target)
    with pytest.raises(ModelError) as caught:
        other.generate(HELLO, Decoding(4), weights=Weights(kind, target))
    ours, theirs = engine.base.sha256[:12], other.base.sha256[:12]
    assert str(caught.value) == (
        f"{target}: these weights were trained on another base ({ours}…, this one is {theirs}…)"
    )
    assert caught.value.hint == "tuneworthy train again on this base"


def test_a_method_that_needs_a_gpu_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    engine = opened(tiny.save(tmp_path / "base"))
    rows = [(HELLO[0], "on")]
    with pytest.raises(ModelError, match=re.escape("qlora needs a GPU")) as caught:
        engine.train(
            rows, rows, learning.settings("qlora"), tmp_path / "m", report=lambda kind, f: None
        )
    assert (caught.value.where, caught.value.hint) == ("lora.method", "method: lora")
