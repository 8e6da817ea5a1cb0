"""A pack gives every row the loss, the logits and the gradients that it has on its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import learning, tiny
from tests.fakes.learning import METHODS
from tuneworthy.engine import attention, kernels, packing
from tuneworthy.engine.packed import OwnPlans
from tuneworthy.engine.packing import TokenRow, pack


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "kernels_here"), tiny.WAYS, indirect=["kernels_here"])
def test_packed_rows_learn_what_single_rows_learn(
    kind: str, kernels_here: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TILE_OVERHEAD", 500)  # several groups of few rows
    rows, model = learning.rows(), learning.prepared(kind, method)
    wanted = learning.reference(model, rows)
    one = pack(rows, block=8)
    assert len(one.groups) > 1 and len(one.groups[-1].tiles) == 5
    with learning.learning(model, rows) as learner:
        assert bool(learner.packed.kernels) == (kernels_here and learning.kernels_fit(kind))
        learning.same(learning.packed_gradients(learner.packed, [one]), wanted)
        alone = [pack([row], block=8) for row in rows]
        learning.same(learning.packed_gradients(learner.packed, alone), wanted)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_changed_neighbour_changes_nothing(kind: str) -> None:
    before, after = learning.rows((14, 30, 33)), learning.rows((14, 30, 33), seed=1)
    kept = before[1]
    found = []
    with learning.learning(tiny.model(kind), before) as learner:
        for first, last in ((before[0], before[2]), (after[0], after[2])):
            laid = pack([first, kept, last], block=8)
            assert laid.order == (first, kept, last)
            with torch.no_grad():
                logits = learner.packed.label_logits(laid).split(laid.label_counts)
            found.append(logits)
    for i, unchanged in enumerate((False, True, False)):
        assert torch.equal(found[0][i][:1], found[1][i][:1]) == unchanged
    assert torch.equal(found[0][1], found[1][1])


def dense(q, k, v, rows, prefix, window, softcap):
    """Attention of a whole pack by one mask: rows see themselves, their past and the prefix."""
    owner = torch.tensor([-1] * prefix + [i for i, n in enumerate(rows) for _ in range(n)])
    position = torch.tensor([*range(prefix), *(prefix + j for n in rows for j in range(n))])
    seen = (owner[:, None] == owner) | (owner == -1)
    seen &= position[:, None] >= position
    if window is not None:
        seen &= position[:, None] - position < window
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ v).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    prefix=st.sampled_from([0, 16, 90]),
    block=st.sampled_from([7, 64, 256]),
    overhead=st.sampled_from([0, packing.TILE_OVERHEAD]),
    window=st.sampled_from([None, 1, 5, 100]),
    softcap=st.sampled_from([None, 1.5]),
    save=st.booleans(),
)
def test_attention_is_that_of_one_dense_mask(
    lengths: list[int],
    prefix: int,
    block: int,
    overhead: int,
    window: int | None,
    softcap: float | None,
    save: bool,
) -> None:
    heads, kv_heads, width = 4, 2, 4
    shared = list(range(prefix))
    rows = [
        TokenRow([*shared, 1000 + i, *[0] * (n - 1)], prefix + 1) for i, n in enumerate(lengths)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SAVED_BYTES", 2**29 if save else 0)
        patch.setattr(packing, "TILE_OVERHEAD", overhead)
        laid = pack(rows, block=block)
        prefix = laid.prefix  # one row shares nothing
        own = [len(row.ids) - prefix for row in laid.order]
        torch.manual_seed(sum(lengths))
        q, k, v = (
            torch.randn(1, h, laid.tokens, width).requires_grad_()
            for h in (heads, kv_heads, kv_heads)
        )
        wanted = dense(q, k, v, own, prefix, window, softcap)
        weight = torch.randn_like(wanted)
        wanted_grads = torch.autograd.grad((wanted * weight).sum(), (q, k, v))
        config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads)
        found, _ = attention.packed_attention(
            SimpleNamespace(layer_idx=0), q, k, v, None,
            pack=attention.Plans(laid, config, torch.device("cpu")),
            sliding_window=window, softcap=softcap,
        )  # fmt: skip
        grads = torch.autograd.grad((found * weight).sum(), (q, k, v))
    for ours, theirs in ((found, wanted), *zip(grads, wanted_grads)):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale + 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    prefix=st.sampled_from([0, 16, 90]),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    width=st.sampled_from([16, 48, 64]),
    window=st.sampled_from([None, 1, 5, 100]),
    softcap=st.sampled_from([None, 1.5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_attention_by_kernels_is_that_of_one_dense_mask(
    lengths: list[int],
    prefix: int,
    heads: tuple[int, int],
    width: int,
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
) -> None:
    quick = kernels.found()
    if isinstance(quick, str):
        pytest.skip(quick)
    shared = list(range(prefix))
    rows = [
        TokenRow([*shared, 1000 + i, *[0] * (n - 1)], prefix + 1) for i, n in enumerate(lengths)
    ]
    laid = pack(rows)
    own = [len(row.ids) - laid.prefix for row in laid.order]
    torch.manual_seed(sum(lengths))
    inputs = [
        torch.randn(1, h, laid.tokens, width).to(dtype) for h in (heads[0], heads[1], heads[1])
    ]
    exact = [x.float().requires_grad_() for x in inputs]
    wanted = dense(*exact, own, laid.prefix, window, softcap)
    weight = torch.randn_like(wanted).to(dtype)
    wanted_grads = torch.autograd.grad((wanted * weight.float()).sum(), exact)
    config = SimpleNamespace(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    ours = [x.clone().requires_grad_() for x in inputs]
    found, _ = attention.packed_attention(
        SimpleNamespace(layer_idx=0), *ours, None,
        pack=OwnPlans(laid, config, quick), sliding_window=window, softcap=softcap,
    )  # fmt: skip
    grads = torch.autograd.grad(found, ours, weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    # Gradients through one key alone are nothing but rounding.
    least = 0.0 if max(own) > 1 or laid.prefix else 1e-2
    for mine, theirs in ((found, wanted), *zip(grads, wanted_grads)):
        assert mine.dtype == dtype
        assert (mine.float() - theirs).norm() <= tolerance * theirs.norm() + least + 1e-4


def test_weights_computed_again_are_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = learning.rows(shared=20), []
    with learning.learning(learning.prepared("gemma2", "lora"), rows) as learner:
        laid = pack(rows, block=8)
        a_layer = (
            4 * attention.Plans(laid, learner.packed.config, learner.packed.device)(None).scores
        )
        for saved in (2**29, a_layer, 0):  # all layers', the first one's, none
            monkeypatch.setattr(attention, "SAVED_BYTES", saved)
            found.append(learning.packed_gradients(learner.packed, [laid]))
    learning.same(found[0], found[1], 1e-6)
    learning.same(found[0], found[2], 1e-6)
