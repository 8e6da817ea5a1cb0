"""A quick way is taken only where it gives the model's own logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import learning, tiny
from tuneworthy.engine import attention, layers, runner
from tuneworthy.engine import learner as learner_module
from tuneworthy.engine.learner import Agreed, Learner, trusted
from tuneworthy.engine.world import World
from tuneworthy.errors import ModelError

QUICK = {
    "norms": 5,
    "adapters": 0,
    "attention blocks": 2,
    "feed-forward blocks": 2,
    "layers": 1,
}
NONE: dict[str, int] = {}


def learns(model: Any, packs: bool, replaced: dict[str, int]) -> None:
    """Fail unless the model is trained this way, to its own gradients."""
    rows = learning.rows()
    total, wanted = learning.reference(model, rows)
    labels = sum(row.labels for row in rows)
    mean = total / labels, {name: gradient / labels for name, gradient in wanted.items()}
    with trusted(model, rows) as packed:
        assert (packed.packs, packed.replaced) == (packs, replaced)
        learner = Learner(packed, learning.settings("full", max_gradient_norm=1e9), World(), 4096)
        learning.same(learning.step_gradients(learner, rows), mean)


def scaled(real: Any) -> Any:
    """An attention with other maths than it says."""

    def wrong(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return real(query * 1.2, *args, **kwargs)

    return wrong


def test_known_layers_are_replaced_while_training_and_no_longer() -> None:
    model = tiny.model()
    learns(model, True, QUICK)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_wrong_layers_give_way_to_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "attend", scaled(layers.attend))
    learns(tiny.model(), True, NONE)


def _counted(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[int]:
    """Lengths of the rows that go through the model's own forward, to be compared with."""
    compared, real = [], module._own_logits

    def own_logits(packed: Any, row: Any) -> torch.Tensor:
        compared.append(len(row.ids if module is learner_module else row))
        return real(packed, row)

    monkeypatch.setattr(module, "_own_logits", own_logits)
    return compared


def test_what_agreed_is_not_compared_again_but_on_longer_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared, agreed, rows = _counted(monkeypatch, learner_module), Agreed(), learning.rows()
    some, seen = rows[:4], []
    for given, what in ((some, "a"), (some, "a"), (rows, "a"), (some, "a"), (some, "b")):
        compared.clear()
        with trusted(tiny.model(), given, agreed=agreed, what=what) as packed:
            assert (packed.packs, packed.replaced) == (True, QUICK)
        seen.append(max(compared, default=0))
    assert seen == [31, 0, 40, 0, 31]


def test_what_did_not_agree_is_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "attend", scaled(layers.attend))
    agreed = Agreed()
    for _ in range(2):
        with trusted(tiny.model(), learning.rows(), agreed=agreed, what="a") as packed:
            assert (packed.packs, packed.replaced) == (True, NONE)
    with runner.opened(tiny.model(), agreed=agreed, what="b") as running:
        assert not running.adapts
    with runner.opened(tiny.model(), agreed=agreed, what="b") as running:
        assert not running.adapts


def test_a_way_of_answering_that_agreed_is_not_compared_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared, agreed, seen = _counted(monkeypatch, runner), Agreed(), []
    for what in ("a", "a", "b"):
        compared.clear()
        with runner.opened(tiny.model(), agreed=agreed, what=what) as running:
            assert isinstance(running, runner.Quick) and running.adapts
        seen.append(bool(compared))
    assert seen == [True, False, True]


def test_wrong_packs_give_way_to_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "attend", scaled(layers.attend))
    monkeypatch.setattr(attention, "attend", scaled(attention.attend))
    learns(tiny.model(), False, NONE)


class OddNorm(nn.Module):
    """No RMSNorm: it leaves the first value alone."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = real.weight, real.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x[..., 1:].square().mean(-1, keepdim=True) + self.variance_epsilon
        return self.weight * torch.cat([x[..., :1], x[..., 1:] * length.rsqrt()], -1)


class OddRMSNorm(OddNorm):
    """Says that it is one."""


@pytest.mark.parametrize("norm", [OddNorm, OddRMSNorm])
def test_layers_that_are_not_what_they_seem_keep_their_own_forward(norm: Any) -> None:
    model = tiny.model()
    for layer in model.model.layers:
        layer.input_layernorm = norm(layer.input_layernorm)
    learns(model, True, {**QUICK, "norms": 3})


def test_attention_with_parts_that_are_not_known_keeps_its_own_forward() -> None:
    model = tiny.model()
    model.model.layers[0].self_attn.sinks = nn.Parameter(torch.zeros(6), requires_grad=False)
    learns(model, True, {**QUICK, "attention blocks": 1})


class Sealed(nn.Module):
    """Attention that does not look at what it is handed: the mean of all tokens so far."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        count = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return hidden_states.cumsum(1) / count, None


def test_attention_that_no_interface_reaches_takes_one_row_at_a_time() -> None:
    model = tiny.model()
    model.model.layers[0].self_attn = Sealed()
    learns(model, False, NONE)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_what_goes_wrong_in_long_rows_only_is_seen(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attention.attend

    def without_window(*args: Any) -> torch.Tensor:
        *others, how, pack = args
        return real(*others, replace(how, window=None), pack)

    for module in (layers, attention):
        monkeypatch.setattr(module, "attend", without_window)
    model = tiny.model(kind)
    short = learning.rows((5, 9, 4, 8))
    with trusted(model, short) as packed:
        assert packed.packs and packed.replaced
    model.set_attn_implementation("eager")
    with trusted(model, [*short, *learning.rows((40,))]) as packed:
        assert not packed.packs and not packed.replaced


def test_logits_that_nobody_knows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    real = model.forward

    def halved(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        found.logits = found.logits * 0.5
        return found

    model.forward = halved
    with pytest.raises(ModelError) as caught, trusted(model, learning.rows()):
        pass
    assert str(caught.value) == "training does not know the output head of LlamaForCausalLM"
    assert caught.value.hint == "use another base model"
