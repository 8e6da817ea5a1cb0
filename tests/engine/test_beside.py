"""Adapters beside one base: rows of several, and of none, in one batch say what each says alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.engine.test_generation import prompts, said
from tests.fakes import learning, tiny
from tuneworthy.engine import adapters, beside, generation
from tuneworthy.engine.adapters import quiet_peft
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.runner import APART_AT_LEAST, Plain, Quick, opened

KINDS = (
    "llama",
    "llama biased",
    "gemma2",
    "llama wide",
)  # the last by kernels, where there are some


def stored(folder: Path, kind: str, seed: int, method: str = "lora", **changes: Any) -> Path:
    """An adapter of random values, larger than a trained one's: greedy answers must differ."""
    torch.manual_seed(seed)
    chosen = learning.settings(method, seed=seed, **changes)
    model = learning.prepared(kind, method, seed=seed, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    adapters.save(model, folder, chosen, "0" * 64)
    return folder


def _adapted(model: Any, folder: Path) -> Any:
    with quiet_peft():
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def alone(kind: str, folder: Path | None, asked: Sequence[list[int]]) -> list[list[int]]:
    """PEFT's own way, one row at a time."""
    model = tiny.model(kind)
    if folder:
        model = _adapted(model, folder)
    return said(Plain(model), asked)[0]


def frozen(kind: str) -> Any:
    """As the engine has it: weights may be kept in another order."""
    return tiny.model(kind).requires_grad_(False)


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call for several layers with adapters beside them, whether tokens differ in theirs."""
    calls, real = [], Kernels.layers

    def layers(self: Kernels, *args: Any, beside: Any, sees_T_R: Any) -> torch.Tensor:
        if beside is not None:
            calls.append(sees_T_R is not None)
        return real(self, *args, beside=beside, sees_T_R=sees_T_R)

    monkeypatch.setattr(Kernels, "layers", layers)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 20, APART_AT_LEAST + 6])
def test_rows_of_several_adapters_say_what_each_says_alone(
    kind: str, shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(15, shared)
    folders = [
        None,
        stored(tmp_path / "a", kind, 1),
        stored(tmp_path / "b", kind, 2, "rslora", rank=2),
    ]
    wanted = {folder: alone(kind, folder, asked) for folder in folders}
    assert len({str(answers) for answers in wanted.values()}) == 3
    model, together = frozen(kind), set()
    beside_layers = _watched(monkeypatch)
    with opened(model) as running:
        assert isinstance(running, Quick) and running.adapts
        monkeypatch.setattr(running, "rows_at_most", 6)  # rows leave, others take their lines
        step = running.step

        def stepping(ids: Sequence[int]) -> torch.Tensor:
            together.add(len(set(running.adapters)))
            assert len(running.adapters) == len(ids)
            return step(ids)

        monkeypatch.setattr(running, "step", stepping)
        loaded = [folder and beside.load(model, folder) for folder in folders]
        owners = random.Random(shared).choices([0, 1, 2], k=len(asked))
        found, _ = said(running, asked, owners=[loaded[i] for i in owners])
        # And the base alone once more: nothing of them is left.
        assert said(running, asked)[0] == wanted[None]
    assert found == [wanted[folders[owner]][row] for row, owner in enumerate(owners)]
    at_once = running.packed.replaced.get("layers at once", 0)
    assert bool(beside_layers) == bool(at_once)  # mixed rows, too, where they mix
    assert (True in beside_layers) == bool(at_once and shared < APART_AT_LEAST)
    assert max(together) == (3 if shared < APART_AT_LEAST else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [3, 4])  # of two numbers at a time, and one left over
def test_sixteen_bits_are_near_pefts_own(kind: str, rank: int, tmp_path: Path) -> None:
    folder, asked = stored(tmp_path / "a", kind, 1, rank=rank), prompts(9, shared=10)
    model = frozen(kind).bfloat16()
    with opened(model) as running:
        adapter = beside.load(model, folder)
        assert adapter
        scores = generation.score(running, asked, [[[5, 6]]] * 9, adapter)
        base = generation.score(running, asked, [[[5, 6]]] * 9)
    adapted = _adapted(tiny.model(kind), folder)
    wanted = torch.tensor(generation.score(Plain(adapted), asked, [[[5, 6]]] * 9))
    assert (torch.tensor(scores) - wanted).norm() <= 0.05 * wanted.norm()
    assert (torch.tensor(base) - wanted).norm() > 0.1 * wanted.norm()


def test_an_adapter_of_few_layers_runs_beside_one_of_all(tmp_path: Path) -> None:
    whole = stored(tmp_path / "a", "llama", 1)
    few = tmp_path / "b"
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"])
    torch.manual_seed(5)
    with quiet_peft():
        model = peft.get_peft_model(tiny.model("llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(str(few))
    asked = prompts(8)
    wanted = [alone("llama", folder, asked) for folder in (whole, few)]
    base = tiny.model("llama")
    with opened(base) as running:
        loaded = [beside.load(base, folder) for folder in (whole, few)]
        found, _ = said(running, asked, owners=[loaded[row % 2] for row in range(8)])
    assert found == [wanted[row % 2][row] for row in range(8)]


@pytest.mark.parametrize("method", ["dora", "loha"])
def test_what_is_more_than_plain_lora_is_left_to_be_merged(method: str, tmp_path: Path) -> None:
    assert beside.load(tiny.model(), stored(tmp_path / "m", "llama", 1, method)) is None


@pytest.mark.parametrize(
    "change", [{"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 8}}]
)
def test_scales_that_differ_by_layer_are_left_to_be_merged(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = stored(tmp_path / "m", "llama", 1)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert beside.load(tiny.model(), folder) is None


def test_an_adapter_for_other_layers_is_left_to_be_merged(tmp_path: Path) -> None:
    folder = stored(tmp_path / "m", "llama", 1)
    model = tiny.model()
    model.model.layers[0].self_attn.q_proj = peft.tuners.lora.layer.Linear(
        model.model.layers[0].self_attn.q_proj, "x", config=peft.LoraConfig(r=2), r=2
    )
    assert beside.load(model, folder) is None


def test_only_adapters_that_stay_together_are_laid_out(tmp_path: Path) -> None:
    model = tiny.model()
    loaded = [beside.load(model, stored(tmp_path / str(i), "llama", i)) for i in range(3)]
    routes, seen = beside.Beside(), []
    for owners in ([0], [0, 1], [0, 1], [0, 2], [0, 1], [None, 1], [0, 1], [0, 2]):
        routes.route([None if i is None else loaded[i] for i in owners], len(owners))
        seen.append(routes.fleeting)
    assert seen == [False, True, True, True, True, False, False, True]
    routes.route([None], 1)
    assert not routes.fleeting


def test_joined_adapters_are_forgotten_after_a_while(tmp_path: Path) -> None:
    model = tiny.model()
    loaded = [beside.load(model, stored(tmp_path / str(i), "llama", i)) for i in range(7)]
    routes = beside.Beside()
    for one, other in pairwise(loaded):
        routes.route([one, other, None], 4)
    assert len(routes._joined) == beside.MIXTURES
    routes.route([None], 4)
    assert not routes.touches(*model.modules())
