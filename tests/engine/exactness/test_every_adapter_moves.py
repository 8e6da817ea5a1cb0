"""Every adapter learns, and computing activations twice changes no gradient."""

from __future__ import annotations

import pytest
import torch

from tests.fakes import learning, tiny
from tests.fakes.learning import METHODS
from tuneworthy.engine import adapters, fine_tuning


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_activations_computed_twice_give_the_same_gradients(kind: str, method: str) -> None:
    rows, found = learning.rows(shared=20), []
    for twice in (False, True):
        model = learning.prepared(kind, method)
        with learning.learning(model, rows) as learner:
            if twice:
                fine_tuning._compute_twice(model)
            calls = []
            mlp = learner.packed.causal.get_decoder().layers[0].mlp
            mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023 (this turn's)
            found.append(learning.step_gradients(learner, rows))
            assert len(calls) == 1 + twice
    learning.same(found[1], found[0], 1e-6)


@pytest.mark.parametrize("method", ["lora", "lora+", "rslora", "dora", "pissa"])
def test_every_b_moves(method: str) -> None:
    rows, chosen = learning.rows(), learning.settings(method)
    model = adapters.prepare(tiny.model(), chosen)
    ups = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert len(ups) == 2 * 7  # every linear layer of two blocks
    first = {name: p.detach().clone() for name, p in ups.items()}
    fine_tuning._compute_twice(model)
    with learning.learning(model, rows, chosen) as learner:
        for _ in range(3):
            learner.step(rows, 3e-3)
    still = [name for name, p in ups.items() if not (p != first[name]).any(1).all()]
    assert not still
    frozen = {name: p for name, p in tiny.model().named_parameters() if "norm" in name}
    for name, weight in frozen.items():
        assert torch.equal(dict(model.named_parameters())[f"base_model.model.{name}"], weight)
