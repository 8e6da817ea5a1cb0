"""A decoder layer in one call there and one back: what it learns is what it learns piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.fakes import learning, tiny
from tests.fakes.learning import Gradients
from tuneworthy.engine import adapters, fine_tuning, kernels, layers
from tuneworthy.engine.adapters import quiet_peft
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.packing import TokenRow, pack

LAYERS = 3
KINDS = {
    "wide": ("Llama", {"head_dim": 32}),
    "biased": ("Llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "window": (
        "Qwen2",
        {
            **{"num_attention_heads": 3, "num_key_value_heads": 1},
            **{"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
        },
    ),
    "odd": ("Llama", {"head_dim": 48, "intermediate_size": 74, "num_key_value_heads": 6}),
}


@pytest.fixture
def own() -> Kernels:
    found = kernels.found()
    if isinstance(found, str):
        pytest.skip(f"no kernels: {found}")
    return found


def prepared(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(tiny.KINDS, kind, KINDS[kind])
    base = tiny.model(kind, num_hidden_layers=LAYERS, initializer_range=0.1).to(dtype)
    model = adapters.prepare(base, learning.settings())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that go through in one call from now on, there and back."""
    found = []

    def watched(name: str) -> None:
        real = getattr(Kernels, name)

        def call(*given: Any, **more: Any) -> Any:
            found.append(name)
            return real(*given, **more)

        monkeypatch.setattr(Kernels, name, call)

    watched("layer_there")
    watched("layer_back")
    return found


def gradients(model: Any, rows: Sequence[TokenRow]) -> Gradients:
    with learning.learning(model, rows) as learner:
        return learning.packed_gradients(learner.packed, [pack(rows)])[1]


def apart(found: Gradients, wanted: Gradients) -> float:
    """The difference of all gradients together, as a share of what is wanted."""
    assert found.keys() == wanted.keys()
    both = [(found[name].float(), wanted[name].float()) for name in wanted]
    assert all(torch.isfinite(one).all() for one, _ in both)
    difference = sum(float((one - other).square().sum()) for one, other in both)
    return (difference / sum(float(other.square().sum()) for _, other in both)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_are_those_of_the_layer_piece_by_piece(
    own: Kernels, kind: str, shared: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in 32 bits those of the model's own code, one row at a time."""
    rows, model = learning.rows(shared=shared), prepared(kind, dtype, monkeypatch)
    if own.multiplies(model.get_output_embeddings().weight) < 1000:
        pytest.skip("products go by oneDNN here")
    went = calls(monkeypatch)
    found = gradients(model, rows)
    assert went.count("layer_back") == LAYERS - 1
    _, exact = learning.reference(model.float(), rows)  # the last: it changes the model
    model.to(dtype)
    went.clear()
    monkeypatch.setattr(layers, "_learned", lambda *_: None)
    pieces = gradients(model, rows)
    assert not went
    if dtype == torch.float32:
        assert apart(found, exact) < 1e-5
    else:
        assert apart(found, exact) < 1.2 * apart(pieces, exact) < 0.1


def test_nothing_below_the_first_layer_takes_a_gradient(
    own: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, real = [], Kernels.layer_back

    def watched(*given: Any, wants_x: bool) -> Any:
        wanted.append(wants_x)
        return real(*given, wants_x=wants_x)

    monkeypatch.setattr(Kernels, "layer_back", watched)
    model = prepared("wide", torch.float32, monkeypatch)
    if own.multiplies(model.get_output_embeddings().weight) < 1000:
        pytest.skip("products go by oneDNN here")
    gradients(model, learning.rows())
    assert wanted == [True] * (LAYERS - 2) + [False]


@pytest.mark.parametrize(
    ("method", "changes"), [("dora", {}), ("lora", {"dropout": 0.1}), ("full", {})]
)
def test_what_is_more_than_plain_lora_goes_piece_by_piece(
    own: Kernels, method: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    went = calls(monkeypatch)
    rows, model = learning.rows(), learning.prepared("llama wide", method, **changes)
    with learning.learning(model, rows) as learner:
        learning.packed_gradients(learner.packed, [pack(rows)])
        assert learner.packed.replaced["layers"] == 1  # the last one
    assert not went


def test_a_gain_that_learns_has_its_gradient(own: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    went = calls(monkeypatch)
    rows, model = learning.rows(), learning.prepared("llama wide", "lora")
    with quiet_peft():
        norm = model.get_base_model().model.layers[0].input_layernorm
    norm.weight.requires_grad_(True)
    with learning.learning(model, rows) as learner:
        _, found = learning.packed_gradients(learner.packed, [pack(rows)])
    assert not went and any("input_layernorm" in name for name in found)


def test_layers_whose_activations_are_computed_twice(
    own: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, found, there = learning.rows(shared=20), [], []
    for twice in (False, True):
        model = prepared("wide", torch.float32, monkeypatch)
        if own.multiplies(model.get_output_embeddings().weight) < 1000:
            pytest.skip("products go by oneDNN here")
        with learning.learning(model, rows) as learner:
            if twice:
                fine_tuning._compute_twice(model)
            with pytest.MonkeyPatch.context() as watching:
                went = calls(watching)
                found.append(learning.step_gradients(learner, rows))
            there.append(went.count("layer_there"))
    assert there == [LAYERS - 1, 2 * (LAYERS - 1)]
    learning.same(found[1], found[0], 1e-6)
