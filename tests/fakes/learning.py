"""Rows, learners and plain references for tests of the training engine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.fakes import tiny
from tuneworthy.engine import adapters, kernels
from tuneworthy.engine.learner import Learner, PackedModel, trusted
from tuneworthy.engine.packing import Pack, TokenRow
from tuneworthy.engine.training import TrainingRun
from tuneworthy.engine.world import World
from tuneworthy.types import Report, TrainingResult, TrainingSettings

Gradients = dict[str, torch.Tensor]
LENGTHS = (31, 3, 14, 9, 40, 14, 22, 27)
"""Beyond the small models' window of 12, unsorted, one length twice."""
METHODS = ("lora", "full")


def rows(lengths: Sequence[int] = LENGTHS, *, seed: int = 0, shared: int = 0) -> list[TokenRow]:
    """Random rows of these lengths behind `shared` tokens that they all begin with."""
    dice = random.Random(seed)
    prefix = [dice.randrange(400) for _ in range(shared)]
    found = []
    for length in lengths:
        own = [dice.randrange(400) for _ in range(length)]
        found.append(TokenRow(prefix + own, shared + dice.randint(1, length - 1)))
    return found


def settings(method: str = "lora", **changes: Any) -> TrainingSettings:
    rate = 1e-3 if method == "full" else 3e-3
    values: dict[str, Any] = {"learning_rate": rate, "epochs": 1.0, "rank": 4, "alpha": 8}
    return TrainingSettings(method=method, **{**values, **changes})


def prepared(kind: str, method: str, **changes: Any) -> Any:
    """A random model with random adapters: B at rest would hide every gradient of A."""
    model = adapters.prepare(tiny.model(kind), settings(method, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


@contextmanager
def learning(
    model: Any,
    some: Sequence[TokenRow],
    chosen: TrainingSettings | None = None,
    pack_tokens: int = 10_000,
) -> Iterator[Learner]:
    """A learner over packs, on its own way through the layers; gradients are not clipped."""
    with trusted(model, some) as packed:
        assert packed.packs and packed.replaced["attention blocks"] >= 2
        yield Learner(packed, chosen or settings(max_gradient_norm=1e9), World(), pack_tokens)


def kernels_fit(kind: str) -> bool:
    """Whether a model of this kind takes this machine's kernels, if it has some."""
    return kind in tiny.WIDE and not isinstance(kernels.found(), str)


def gradients(model: nn.Module) -> Gradients:
    """Every trainable parameter's gradient, taken away from the model."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name], parameter.grad = parameter.grad, None
    return found


def reference(model: Any, some: Sequence[TokenRow]) -> tuple[float, Gradients]:
    """Summed loss and gradients from the model's own forward: one row at a time, plain loss."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.set_attn_implementation("eager")
    total = 0.0
    for one in some:
        loss = nn.functional.cross_entropy(*logits_and_targets(model, one), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def logits_and_targets(model: Any, one: TokenRow) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([one.ids])
    logits_T_V = model(input_ids=ids).logits[0]
    return logits_T_V[one.prompt_length - 1 : -1], ids[0, one.prompt_length :]


def packed_gradients(packed: PackedModel, packs: Sequence[Pack]) -> tuple[float, Gradients]:
    total = 0.0
    for pack in packs:
        loss, losses_L, _ = packed(pack)
        assert float(losses_L.sum()) == float(loss.detach())
        loss.backward()
        total += loss.item()
    return total, gradients(packed.model)


def step_gradients(learner: Learner, some: Sequence[TokenRow]) -> tuple[float, Gradients]:
    """Mean loss and gradients of an optimizer step; at a learning rate of 0 nothing moves."""
    found: Gradients = {}

    def keep(*_: Any) -> None:
        for name, master in zip(learner.names, learner.masters):
            assert master.grad is not None
            found[name] = master.grad.clone()

    hook = learner.optimizer.register_step_pre_hook(keep)
    loss, _ = learner.step(some, 0.0)
    hook.remove()
    return loss, found


def same(
    found: tuple[float, Gradients], wanted: tuple[float, Gradients], tolerance: float = 1e-4
) -> None:
    """Fail unless losses and all gradients agree, each gradient on the scale of its largest."""
    assert abs(found[0] - wanted[0]) <= tolerance * abs(wanted[0])
    assert found[1].keys() == wanted[1].keys() and len(wanted[1]) > 5
    for name, gradient in wanted[1].items():
        scale = gradient.abs().max().item()
        assert scale > 0, f"{name} has no gradient to compare"
        torch.testing.assert_close(
            found[1][name],
            gradient,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def train(
    folder: Path,
    method: str = "lora",
    *,
    train_rows: Sequence[TokenRow] | None = None,
    report: Report = lambda kind, fields: None,
    deadline: float | None = None,
    pack_tokens: int = 64,
    **changes: Any,
) -> TrainingResult:
    """Bring a training run of a tiny model to its end in `folder`: 10 steps of 3 rows."""
    usual = {"epochs": 2.0, "batch_rows": 3, "patience": 99, "evaluations_per_epoch": 2}
    chosen = settings(method, **{**usual, **changes})
    some = train_rows if train_rows is not None else rows((9, 14, 6, 22, 17) * 3, seed=1)
    model = adapters.prepare(tiny.model(), chosen)
    with trusted(model, some) as packed:
        learner = Learner(packed, chosen, World(), pack_tokens)
        dev = rows((8, 12, 19), seed=2)
        return TrainingRun(
            learner, some, dev, chosen, folder, base_sha256="the base", report=report
        ).work(deadline)
