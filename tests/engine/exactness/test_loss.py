"""The chunked loss on completions alone is the plain one, whatever the output head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import learning, tiny
from tuneworthy.engine import loss
from tuneworthy.engine.learner import PackedModel
from tuneworthy.engine.packing import pack

LABELS = 30


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LABELS", 7)


def adapted(head: nn.Linear) -> Any:
    """The head with a low-rank adapter, as PEFT makes it."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["head"], init_lora_weights=False)
    return peft.get_peft_model(nn.ModuleDict({"head": head}), config).base_model.model["head"]


HEADS = {"plain": lambda head: head, "unknown": nn.Sequential, "adapted": adapted}


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_every_gradient(
    kind: str, frozen: bool, bias: bool, softcap: float | None
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 50, bias=bias)
    head = HEADS[kind](linear).requires_grad_(not frozen)
    if kind == "adapted":
        head.lora_A.requires_grad_(True)
        head.lora_B.requires_grad_(True)
    hidden = torch.randn(LABELS, 16, requires_grad=True)
    targets = torch.randint(0, 50, (LABELS,))
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    logits = head(hidden)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = nn.functional.cross_entropy(logits, targets, reduction="none")
    total, losses, _ = loss.completion_loss(head, hidden, targets, softcap)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    assert not losses.requires_grad
    assert total.item() == pytest.approx(plain.sum().item(), rel=1e-6)
    theirs = torch.autograd.grad(plain.sum() * 0.3, wanted)
    for found, reference in zip(torch.autograd.grad(total * 0.3, wanted), theirs):
        assert reference.abs().max() > 0
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", HEADS)
def test_the_likeliest_token_is_known_where_no_gradient_is_wanted(kind: str) -> None:
    torch.manual_seed(0)
    head = HEADS[kind](nn.Linear(16, 50))
    hidden, targets = torch.randn(LABELS, 16), torch.randint(0, 50, (LABELS,))
    with torch.no_grad():
        said = head(hidden).argmax(-1)
        targets[::2] = said[::2]
        _, _, right = loss.completion_loss(head, hidden, targets, 2.0)
    assert right[::2].all() and torch.equal(right, said == targets) and not right.all()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_an_adapter_on_the_models_output_head(kind: str) -> None:
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["lm_head", "q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
    )
    rows, model = learning.rows(), peft.get_peft_model(tiny.model(kind), config)
    wanted = learning.reference(model, rows)
    assert any("lm_head.lora_B" in name for name in wanted[1])
    with learning.learning(model, rows) as learner:
        assert isinstance(learner.packed, PackedModel)
        learning.same(learning.packed_gradients(learner.packed, [pack(rows)]), wanted)
