"""What a GPU takes instead of tiles: the rule is tried here, kernels and gradients on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.fakes import learning, tiny
from tuneworthy.engine import flex, hardware
from tuneworthy.engine.flex import FlexPlans
from tuneworthy.engine.learner import PackedModel
from tuneworthy.engine.packing import Pack, pack

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_rule_of_who_sees_whom_is_that_of_tiles(
    kind: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients follow from the rule; without a GPU there is no backward pass to look at."""
    rows, found = learning.rows(shared=shared), []
    with learning.learning(learning.prepared(kind, "lora"), rows) as learner, torch.no_grad():
        laid = pack(rows)
        assert (laid.prefix > 0) == (shared > 0)
        found.append(learner.packed.label_logits(laid))

        def plans(self: PackedModel, laid: Pack) -> FlexPlans:
            return FlexPlans(laid, self.device, compile=False)

        monkeypatch.setattr(PackedModel, "_plans", plans)
        found.append(learner.packed.label_logits(laid))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@GPU
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_gpu_gives_the_loss_and_gradients_of_a_processor(kind: str) -> None:
    rows, found = learning.rows(shared=20), []
    for device in ("cpu", "cuda"):
        model = learning.prepared(kind, "lora").to(device)
        with learning.learning(model, rows) as learner:
            assert learner.packed.packs
            loss, gradients = learning.packed_gradients(learner.packed, [pack(rows)])
            found.append((loss, {name: g.cpu() for name, g in gradients.items()}))
    learning.same(found[1], found[0], 1e-3)


@GPU
@pytest.mark.skipif(not hardware.liger(), reason="liger-kernel is not installed")
def test_ligers_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = learning.rows(), []
    for there in (True, False):
        monkeypatch.setattr("tuneworthy.engine.layers.liger", lambda there=there: there)
        model = learning.prepared("llama", "lora").to("cuda")
        with learning.learning(model, rows) as learner:
            assert learner.packed.replaced["norms"]
            found.append(learning.packed_gradients(learner.packed, [pack(rows)]))
    learning.same(found[0], found[1], 1e-3)


def test_a_processor_is_not_given_what_has_to_be_compiled() -> None:
    made: list[object] = []
    rows = learning.rows()
    with learning.learning(learning.prepared("llama", "lora"), rows) as learner:
        made.append(learner.packed._plans(pack(rows)))
    assert not isinstance(made[0], flex.FlexPlans)
