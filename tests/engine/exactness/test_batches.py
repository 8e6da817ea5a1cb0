"""How a batch is cut into packs, and shared among processes, changes no number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import learning, tiny
from tests.fakes.learning import METHODS
from tuneworthy.engine import open_engine
from tuneworthy.engine.packing import TokenRow

ROOT = Path(__file__).parents[3]
WAYS = (("lora", "ddp"), ("lora", "fsdp"), ("full", "ddp"), ("full", "fsdp"))


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("method", METHODS)
def test_one_batch_of_8_is_8_packs_of_1(method: str, shared: int) -> None:
    rows = learning.rows(shared=shared)
    assert len({row.labels for row in rows}) > 4
    model = learning.prepared("llama", method)
    total, wanted = learning.reference(model, rows)
    labels = sum(row.labels for row in rows)
    mean = total / labels, {name: gradient / labels for name, gradient in wanted.items()}
    with learning.learning(model, rows) as learner:
        for tokens, packs in ((10_000, 1), (shared + 60, 3), (1, 8)):
            learner.pack_tokens = tokens
            made = [pack for pack, _ in learner._packs(rows)]
            assert len(made) == packs if packs != 3 else 1 < len(made) < 8
            learning.same(learning.step_gradients(learner, rows), mean)


def test_gradients_are_clipped_as_a_whole_and_not_pack_by_pack() -> None:
    rows = learning.rows()
    with learning.learning(learning.prepared("llama", "full"), rows) as learner:
        _, free = learning.step_gradients(learner, rows)
        norm = torch.stack([gradient.norm() for gradient in free.values()]).norm().item()
        assert learner.gradient_norm == pytest.approx(norm, rel=1e-5)
        learner.settings = learning.settings("full", max_gradient_norm=norm / 2)
        for tokens in (10_000, 1):
            learner.pack_tokens = tokens
            _, clipped = learning.step_gradients(learner, rows)
            halves = 0.0, {name: gradient / 2 for name, gradient in free.items()}
            learning.same((0.0, clipped), halves)


def trained(folder: Path, out: Path) -> None:
    """Three steps each way; run by every process of a launcher, or by none."""
    torch.set_num_threads(1)
    engine = open_engine(str(folder), folder, lambda text: None)
    found = [learning.rows((9, 14, 6, 22, 17, 30, 11, 8) * 3, seed=1), learning.rows(seed=2)]
    engine._tokens = lambda row: row  # type: ignore[attr-defined]
    for method, parallel in WAYS:
        chosen = learning.settings(method, parallel=parallel)
        result = engine.train(  # type: ignore[attr-defined]
            *([(row,) for row in some] for some in found),
            chosen,
            out / f"{method} {parallel}",
            report=lambda kind, fields: None,
        )
        assert (result.steps, result.best_step) == (3, 3)
        curve = [h[of] for of in ("dev_loss", "train_loss") for h in result.history if of in h]
        assert len(curve) == 2 * len(result.history) - 1  # no training rows before the first step
        if os.environ.get("RANK", "0") == "0":
            save_file({"curve": torch.tensor(curve)}, out / f"{method} {parallel}.curve")


@pytest.mark.parametrize("kind", ["llama", "llama wide"])
def test_two_processes_learn_what_one_learns(kind: str, tmp_path: Path) -> None:
    """Piece by piece, and where the heads are wide by whole layers, if there are kernels here."""
    base = tiny.save(tmp_path / "base", kind=kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    code = "import sys, pathlib; from tests.engine.exactness import test_batches as t; "
    code += "t.in_float32(); t.trained(*map(pathlib.Path, sys.argv[1:]))"
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(base), str(tmp_path / "two")],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    trained(base, tmp_path / "one")
    before = load_file(base / "model.safetensors")
    for method, parallel in WAYS:
        name = f"{method} {parallel}"
        file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
        pairs = [load_file(tmp_path / who / name / file) for who in ("one", "two")]
        pairs += [before] if method == "full" else []
        assert pairs[0].keys() == pairs[1].keys()
        for key, weight in pairs[0].items():
            # Adam divides by its own scale, so rounding grows.
            torch.testing.assert_close(pairs[1][key], weight, rtol=1e-4, atol=2e-5)
            if method == "full":
                assert (weight - before[key]).abs().max() > 1e-3
        one, two = (load_file(tmp_path / who / f"{name}.curve")["curve"] for who in ("one", "two"))
        torch.testing.assert_close(two, one, rtol=1e-4, atol=0)


def in_float32() -> None:
    from tuneworthy.engine import hardware

    chosen = hardware.NumberFormat("cpu", torch.float32, "tests compare numbers")
    hardware.number_format = lambda: chosen  # type: ignore[assignment]


def test_every_row_is_one_processes_and_loads_are_alike() -> None:
    from tuneworthy.engine.world import World

    rows = learning.rows((300, *range(2, 40)))
    for size in (1, 2, 3, 7):
        shares = World(0, size).shares(rows, [len(row.ids) for row in rows])
        assert sorted(id(row) for share in shares for row in share) == sorted(map(id, rows))
        loads = [sum(len(row.ids) for row in share) for share in shares]
        assert max(loads) - min(loads) <= (300 if size == 7 else 40)
    # More processes than rows: some have nothing to do.
    assert World(0, 3).shares([TokenRow([1, 2], 1)], [2]).count([]) == 2
