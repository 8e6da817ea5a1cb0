"""Speed changed nothing: the packed, shared, chunked way against the plain one, in float32."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import tiny
from tuneworthy.engine import adapters, attention, loss, packing, training
from tuneworthy.engine.learner import Learner, PackedModel, make_packs, trusted
from tuneworthy.engine.models import load_causal
from tuneworthy.engine.packing import TokenRow
from tuneworthy.engine.training import TrainingRun
from tuneworthy.engine.world import World
from tuneworthy.errors import StorageError
from tuneworthy.types import TrainingSettings

SHARED = [5, 9, 11, 7] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


def rows(count: int, shared: Sequence[int] = ()) -> list[TokenRow]:
    random = torch.Generator().manual_seed(count)
    found = []
    for i in range(count):
        own = torch.randint(4, 400, (3 + 7 * i % 40,), generator=random).tolist()
        said = torch.randint(4, 400, (1 + 5 * i % 9,), generator=random).tolist()
        found.append(TokenRow([*shared, *own, *said, 2], len(shared) + len(own)))
    return found


def settings(method: str, **changes: Any) -> TrainingSettings:
    values = {"learning_rate": 1e-2, "epochs": 3.0, "rank": 4, "batch_rows": 4, "patience": 99}
    values["evaluations_per_epoch"] = 2
    return TrainingSettings(method=method, **{**values, **changes})


def prepared(folder: Path, method: str) -> Any:
    model = adapters.prepare(load_causal(folder, torch.float32), settings(method))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros would hide mistakes in A
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def plain(model: Any, batch: Sequence[TokenRow]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients by the model's own forward, one row at a time."""
    total: Any = 0.0
    for row in batch:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
        targets = torch.tensor(row.ids[row.prompt_length :])
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    total = total / sum(row.labels for row in batch)
    total.backward()
    return total.item(), [p.grad for p in model.parameters() if p.requires_grad]


def packed_gradients(
    model: Any, batch: Sequence[TokenRow], pack_tokens: int
) -> tuple[float, list[torch.Tensor]]:
    with trusted(model, batch) as quick:
        assert quick.packs and quick.replaced["attention blocks"] == 2
        quick.train()
        labels, total = sum(row.labels for row in batch), 0.0
        for pack in make_packs(batch, pack_tokens):
            value, _, _ = quick(pack)
            (value / labels).backward()
            total += value.item() / labels
    return total, [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("shared", [[], SHARED])
@pytest.mark.parametrize("pack_tokens", [4096, 60, 1])
@pytest.mark.parametrize("saved", [2**29, 0])
def test_packed_shared_and_cut_give_the_plain_loss_and_gradients(
    folder: Path,
    method: str,
    shared: list[int],
    pack_tokens: int,
    saved: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "SAVED_BYTES", saved)
    monkeypatch.setattr(loss, "CHUNK_LABELS", 16)
    monkeypatch.setitem(packing.pack.__kwdefaults__, "block", 8)
    batch = rows(8, shared)
    wanted, theirs = plain(prepared(folder, method), batch)
    found, ours = packed_gradients(prepared(folder, method), batch, pack_tokens)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert len(ours) == len(theirs) > 10
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_shared_beginning_is_computed_once() -> None:
    batch = rows(6, SHARED)
    together, repeated = packing.pack(batch), packing.pack(batch, share=False)
    assert repeated.tokens - together.tokens == 5 * len(SHARED)
    assert together.targets_L.tolist() == repeated.targets_L.tolist()


def test_changing_one_row_leaves_the_others_logits_unchanged(folder: Path) -> None:
    batch = rows(4)
    changed = [TokenRow([9] * len(batch[0].ids), batch[0].prompt_length), *batch[1:]]
    with trusted(load_causal(folder, torch.float32), batch) as quick, torch.no_grad():
        before, after = (quick.label_logits(packing.pack(b, share=False)) for b in (batch, changed))
    order = packing.pack(batch, share=False).order
    parts = zip(order, *(x.split([r.labels for r in order]) for x in (before, after)))
    same = {id(row): torch.equal(one, other) for row, one, other in parts}
    assert [same[id(row)] for row in batch] == [False, True, True, True]


def test_labels_are_the_completion_and_its_end() -> None:
    batch = rows(5)
    pack = packing.pack(batch)
    starts = {group.first_token[i] for group in pack.groups for i in range(len(group.lengths))}
    assert not starts & {p + 1 for p in pack.label_positions_L.tolist()}
    for row, labels in zip(pack.order, pack.targets_L.split(pack.label_counts)):
        assert labels.tolist() == row.ids[row.prompt_length :] and labels[-1] == 2


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_loss_is_the_plain_one(
    softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LABELS", 7)
    torch.manual_seed(0)
    hidden, targets = torch.randn(30, 16, requires_grad=True), torch.randint(0, 50, (30,))
    head = torch.nn.Linear(16, 50, bias=bias)
    logits = head(hidden)
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    leaves = [hidden, *head.parameters()]
    wanted = torch.nn.functional.cross_entropy(capped, targets, reduction="sum")
    theirs = torch.autograd.grad(wanted, leaves)
    other = torch.nn.Sequential(head)  # no plain linear layer: computed again in the backward pass
    for module in (head, other):
        found, each_L, _ = loss.completion_loss(module, hidden, targets, softcap)
        assert each_L.sum().item() == pytest.approx(wanted.item(), rel=1e-5)
        for mine, their in zip(torch.autograd.grad(found, leaves), theirs):
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def train(folder: Path, target: Path, method: str, kill_at: int = 0) -> dict[str, Any]:
    """A run of 3 epochs of 6 steps; killed after a step if that is asked for."""
    training.CHECKPOINT_SECONDS = 0.0
    torch.set_num_threads(1)

    def report(kind: str, fields: dict[str, Any]) -> None:
        if kill_at and fields.get("step") == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = adapters.prepare(load_causal(folder, torch.float32), settings(method))
    packed = PackedModel(model)
    learner = Learner(packed, settings(method), World(), 60)
    learn, dev = rows(24), rows(5)
    run = TrainingRun(
        learner, learn, dev, settings(method), target, base_sha256="base", report=report
    )
    result = run.work()
    weights = {n: p.detach().clone() for n, p in zip(learner.names, learner.masters)}
    return {"history": result.history, "weights": weights, "log": run.log.read_bytes()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_run_ends_with_the_same_bits(folder: Path, tmp_path: Path, method: str) -> None:
    whole = train(folder, tmp_path / "whole", method)
    context = multiprocessing.get_context("fork")
    for kill_at in (7, 9, 10, 11, 12):
        target = tmp_path / f"killed-{kill_at}"
        child = context.Process(target=train, args=(folder, target, method, kill_at))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert target.with_name(target.name + ".checkpoint").exists()
        again = train(folder, target, method)
        assert again["history"] == whole["history"]
        assert again["log"] == whole["log"]
        assert all(torch.equal(again["weights"][n], w) for n, w in whole["weights"].items())


@pytest.mark.parametrize("damage", ["cut", "flip", "half state", "other run"])
def test_torn_and_foreign_checkpoints_are_named(tmp_path: Path, damage: str) -> None:
    from tuneworthy.engine import checkpoint

    folder = tmp_path / "model.checkpoint"
    checkpoint.write(folder, {"a": torch.arange(9.0)}, {"step": 3}, "digest")
    read = checkpoint.read(folder, "digest")
    assert read and read[1]["step"] == 3 and torch.equal(read[0]["a"], torch.arange(9.0))
    tensors, state = folder / "state.safetensors", folder / "state.json"
    data = bytearray(tensors.read_bytes())
    if damage == "cut":
        tensors.write_bytes(data[:-5])
    elif damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "half state":
        state.write_text(json.dumps(json.loads(state.read_text()))[:20])
    else:
        state.write_text(json.dumps(json.loads(state.read_text()) | {"digest": "other"}))
    with pytest.raises(StorageError) as caught:
        checkpoint.read(folder, "digest")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("method", [m for m in adapters.METHODS if m != "qlora"])
def test_saved_adapters_give_the_live_models_logits(
    folder: Path, tmp_path: Path, method: str
) -> None:
    batch = rows(8)
    chosen = settings(method, learning_rate=3e-3)
    model = adapters.prepare(load_causal(folder, torch.float32), chosen)
    with trusted(model, batch) as quick:
        learner = Learner(quick, chosen, World(), 4096)
        for _ in range(3):
            learner.step(batch, 3e-3)
        if "lora" in method and method != "olora":
            moved = [p for n, p in model.named_parameters() if "lora_B" in n]
            assert moved and all(p.abs().max() > 0 for p in moved)
        quick.eval()
        with torch.no_grad():
            live = quick.label_logits(packing.pack(batch))
    adapters.save(model, tmp_path / "m", chosen, "base")
    loaded = PackedModel(adapters.load_adapter(load_causal(folder, torch.float32), tmp_path / "m"))
    loaded.eval()
    with trusted(loaded.model, batch) as again, torch.no_grad():
        torch.testing.assert_close(
            again.label_logits(packing.pack(batch)), live, rtol=2e-3, atol=2e-3
        )
