"""Kernels of our own beside PyTorch's operations, and what happens where there is no compiler."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn

from tests.engine.test_generation import prompts, said
from tests.fakes import tiny
from tuneworthy.engine import (
    adapted,
    attention,
    functions,
    generation,
    kernels,
    reading,
    runner,
    stepping,
)
from tuneworthy.engine.attention import LayerAttention
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.packed import OwnPlans
from tuneworthy.engine.packing import TokenRow, pack
from tuneworthy.engine.slots import Beginning, Shape, Slots

CPU = torch.device("cpu")
Config = SimpleNamespace
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def own() -> Kernels:
    found = kernels.found()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def undecided() -> Iterator[None]:
    """As in a process that has not looked for kernels yet; what others found stays."""
    kept = kernels.found
    kernels.found = kernels.cache(kept.__wrapped__)
    yield
    kernels.found = kept


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """In 32 bits to rounding; in 16 bits to what rounding once or twice makes."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    tolerance = 1e-5 if ours.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def near(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """As a whole: what is near nothing has no relative error to speak of."""
    tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-2
    assert torch.isfinite(ours).all()
    assert (ours.float() - exact).norm() <= tolerance * exact.norm() + 1e-6


def adapters_of_one_input(
    depth: int, widths: tuple[int, ...], rank: int, dtype: torch.dtype, bias: bool
) -> Any:
    """Frozen layers of one input with LoRA beside them that has learned something."""
    base = nn.Module()
    for i, width in enumerate(widths):
        base.add_module(f"layer{i}", nn.Linear(depth, width, bias=bias))
    base.to(dtype).requires_grad_(False)
    adapted_base = peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r"layer\d"), base
    )
    modules = [getattr(adapted_base, f"layer{i}") for i in range(len(widths))]
    for module in modules:
        for part in (module.lora_A, module.lora_B):
            part["default"].weight.data = torch.randn_like(part["default"].weight.float()) / rank
    return modules


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 40, 301])
@pytest.mark.parametrize(
    ("depth", "widths", "rank", "bias"),
    [
        (64, (64,), 2, False),
        (40, (96, 32, 32), 6, True),
        (576, (576, 192, 192), 16, False),
        (48, (136, 136), 10, True),
        (1536, (576,), 64, False),
    ],
)
def test_low_rank_layers_and_their_gradients(
    own: Kernels,
    dtype: torch.dtype,
    tokens: int,
    depth: int,
    widths: tuple[int, ...],
    rank: int,
    bias: bool,
) -> None:
    """Beside the same layers in 64 bits, gradients of the input and of every A and B included."""
    modules = adapters_of_one_input(depth, widths, rank, dtype, bias)
    layers = adapted.low_rank(own, modules)
    if layers is None:
        pytest.skip("this processor multiplies such numbers more quickly by oneDNN")
    given = torch.randn(2, tokens, depth).to(dtype)
    wanted = [torch.randn(2, tokens, width).to(dtype) for width in widths]
    parts = [p for m in modules for p in (m.lora_A.default.weight, m.lora_B.default.weight)]

    def exactly(x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for module, down, up in zip(modules, parts[::2], parts[1::2]):
            base, scale = module.base_layer, module.scaling["default"]
            output = (
                x @ base.weight.double().t() + scale * (x @ down.double().t()) @ up.double().t()
            )
            found.append(output if base.bias is None else output + base.bias.double())
        return found

    x, exact_x = given.clone().requires_grad_(), given.double().requires_grad_()
    ours, exact = layers(x), exactly(exact_x)
    for output, right in zip(ours, exact):
        near(output.detach(), right.detach())
    found = torch.autograd.grad(ours, [x, *parts], wanted)
    right = torch.autograd.grad(exact, [exact_x, *parts], [w.double() for w in wanted])
    for gradient, other in zip(found, right):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert (gradient.double() - other).norm() <= tolerance * other.norm()


def test_layers_that_take_no_gradient_below(own: Kernels) -> None:
    """The first layer's input has none; As and Bs have theirs all the same."""
    modules = adapters_of_one_input(64, (64, 32), 4, torch.float32, bias=False)
    layers = adapted.low_rank(own, modules)
    if layers is None or not layers.suits(torch.zeros(7, 64)):
        pytest.skip("this processor multiplies such numbers more quickly by oneDNN")
    given = torch.randn(1, 7, 64)
    parts = [p for m in modules for p in (m.lora_A.default.weight, m.lora_B.default.weight)]
    without = torch.autograd.grad(sum(out.sum() for out in layers(given)), parts)
    x = given.clone().requires_grad_()
    beside = torch.autograd.grad(sum(out.sum() for out in layers(x)), parts)
    assert all(torch.equal(one, other) for one, other in zip(without, beside))


@pytest.mark.parametrize(("rank", "width"), [(3, 64), (4, 31)])
def test_odd_layers_go_the_other_way(own: Kernels, rank: int, width: int) -> None:
    """In 16 bits numbers lie in pairs."""
    modules = adapters_of_one_input(64, (width,), rank, torch.bfloat16, bias=False)
    assert adapted.low_rank(own, modules) is None
    assert adapted.low_rank(own.without_copies(), modules) is None
    assert adapted.low_rank(None, modules) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 576])
def test_norms(own: Kernels, dtype: torch.dtype, width: int) -> None:
    x, gain = torch.randn(2, 7, 3 * width).to(dtype), torch.randn(width)
    for view in (x[..., :width], x[..., width : 2 * width], x[0, :, :width]):
        exact = view.float() * (view.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        close(own.norm(view, gain, 1e-5), (exact * gain).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 40, 576])
@pytest.mark.parametrize("learns", [True, False])
def test_gradients_of_norms(own: Kernels, dtype: torch.dtype, width: int, learns: bool) -> None:
    def gradients(way: Kernels | None, dtype: torch.dtype) -> list[torch.Tensor]:
        x = given.to(dtype).requires_grad_()
        gain = gains.to(dtype).requires_grad_(learns)
        output = functions.Norm.apply(x, gain, 1e-5, way)
        output.backward(weights.to(dtype))
        return [output, x.grad, *([gain.grad] if learns else [])]

    given, gains, weights = torch.randn(2, 7, width), torch.randn(width), torch.randn(2, 7, width)
    for ours, exact in zip(gradients(own, dtype), gradients(None, torch.float32)):
        near(ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 35])
def test_gradients_of_gates(own: Kernels, dtype: torch.dtype, width: int) -> None:
    given = 6 * torch.randn(2, 3, 5, width)
    given[:, 0, 0, 0] = torch.tensor([-200.0, 3.0])  # its sigmoid vanishes

    def gradients(way: Kernels | None, dtype: torch.dtype) -> list[torch.Tensor]:
        gate, up = (x.to(dtype).requires_grad_() for x in given)
        output = functions.SiLUTimes.apply(gate, up, way)
        output.backward(torch.linspace(-1, 2, output.numel()).view_as(output).to(dtype))
        return [output, gate.grad, up.grad]

    for ours, exact in zip(gradients(own, dtype), gradients(None, torch.float32)):
        near(ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 16, 403])
def test_losses(own: Kernels, dtype: torch.dtype, width: int) -> None:
    logits = (3 * torch.randn(9, width)).to(dtype)
    targets = torch.randint(width, (9,))
    logits[0], targets[0] = 1.0, 1  # as likely as the first: not the one that would be said
    targets[1] = logits[1].argmax()
    exact = logits.float().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    losses.sum().backward()
    kept = logits.clone()
    found, right = own.lose(logits, targets, learns=False)
    assert torch.equal(logits, kept) and right[1] and not right[0]
    assert right.tolist() == (logits.max(-1).indices == targets).tolist()
    torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-5)
    again, _ = own.lose(logits, targets, learns=True)
    assert torch.equal(again, found)
    near(logits, exact.grad)
    with pytest.raises(IndexError):
        own.lose(logits, targets + width, learns=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 48, 64])
def test_turning_by_the_rotary_embedding(own: Kernels, dtype: torch.dtype, width: int) -> None:
    x = torch.randn(9, 5 * width).to(dtype)[:, width : 4 * width].view(9, 3, width)
    half = torch.randn(9, width // 2)
    cos, sin = (torch.cat([f(half)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    for rotary in (None, (cos, sin)):
        for scale in (1.0, 0.125):
            ours = torch.empty(9, 3, width, dtype=dtype)
            own.turn(x, rotary, scale, ours)
            right = attention.rotated(x, *(rotary or (None, None)), scale)
            close(ours, right[:-1].view_as(ours))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 403])
def test_the_likeliest_token_and_the_sum_of_all(
    own: Kernels, dtype: torch.dtype, width: int
) -> None:
    logits = (5 * torch.randn(8, 2 * width)).to(dtype)[:, :width]
    logits[0] = 1.5  # of equals the first
    logits[1] = float("-inf")
    logits[1, -1] = -3.0  # a grammar allows one token
    assert own.likeliest(logits).tolist() == logits.max(-1).indices.tolist()
    assert own.likeliest(logits)[0] == 0
    torch.testing.assert_close(own.log_sums(logits), logits.float().logsumexp(-1))


def test_scores_that_are_far_apart_neither_overflow_nor_vanish(own: Kernels) -> None:
    row = TokenRow(list(range(4)), 1)
    config = Config(num_attention_heads=1, num_key_value_heads=1)
    query, key, value = torch.ones(4, 1, 16), torch.zeros(4, 1, 16), torch.zeros(4, 1, 16)
    key[:, 0, 0] = torch.tensor([-3e38, 80.0, 88.5, -60.0])
    value[:, 0, :4] = torch.eye(4)
    given = [x.requires_grad_() for x in (query, key, value)]
    how = LayerAttention(0, 1.0, None, None)
    found = OwnPlans(pack([row]), config, own).attend(*given, None, how)
    weights = found.detach()[-1, 0, :4]
    assert weights.sum() == pytest.approx(1) and weights[0] == 0 < weights[1]
    found.sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in given)
    assert own.log_sums(torch.tensor([[1000.0, -1000.0, 1000.0]])).item() == pytest.approx(1000.693)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", [0, 5, 70])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (60, 2.0)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "count"),
    [(6, 2, 16, 1), (3, 3, 64, 1), (4, 1, 128, 1), (5, 1, 48, 3), (9, 3, 64, 4)],
)
def test_a_step_is_that_of_pytorchs_operations(
    own: Kernels,
    dtype: torch.dtype,
    prefix: int,
    window: int | None,
    softcap: float | None,
    heads: int,
    kv_heads: int,
    width: int,
    count: int,
) -> None:
    """Rows in several pools, branches that do not see each other, and what all begin with."""
    shape, layer = Shape(2, heads, kv_heads, width), 1
    slots = Slots(shape, dtype, CPU)
    slots.add([300, 3, 126, 40, 1])
    slots.make_room(count)
    assert len(slots.pools) > 1
    for pool in slots.pools.values():
        pool.keys.normal_()
        pool.values.normal_()
    shared = (torch.randn(2, 2, kv_heads, prefix, width)).to(dtype)
    beginning = Beginning(tuple(range(prefix)), *shared) if prefix else None
    depths = torch.arange(count).expand(5, -1).clone()
    sees = torch.ones(5, count, count, dtype=torch.bool).tril()
    if count > 2:  # the second is the start of another branch
        depths[:, 1] = 0
        sees[:, 1:, 0] = False
    query = torch.randn(5 * count, heads, width).to(dtype)
    key, value = torch.randn(2, 5 * count, kv_heads, width).to(dtype)
    angle = torch.randn(5 * count, width // 2)
    rotary = tuple(torch.cat([f(angle)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    how = LayerAttention(layer, width**-0.5, window, softcap)
    found = []
    for slots.kernels, turned in ((None, rotary), (own, rotary), (None, None), (own, None)):
        ahead = stepping.next_tokens(slots, beginning, depths, sees)
        assert isinstance(ahead, stepping.ByKernels) == (slots.kernels is own)
        found.append(ahead.attend(query, key, value, turned, how))
    close(found[1], found[0])
    close(found[3], found[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", [0, 5, 32, 70])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (60, 2.0)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(6, 2, 16), (3, 3, 64), (4, 1, 128), (5, 1, 48)]
)
def test_reading_is_that_of_pytorchs_operations(
    own: Kernels,
    dtype: torch.dtype,
    prefix: int,
    held: bool,
    window: int | None,
    softcap: float | None,
    heads: int,
    kv_heads: int,
    width: int,
) -> None:
    """Rows of many lengths in two pools; what is left in their slots too."""
    lengths = (40, 1, 13, 140, 12)
    rows = {i: list(range(n)) for i, n in enumerate(lengths)}
    shared = (torch.randn(2, 2, kv_heads, prefix, width)).to(dtype)
    tokens, layer, inside = sum(lengths), 1, prefix if held else 0
    query = torch.randn(tokens, heads, width).to(dtype)
    key, value = torch.randn(2, tokens, kv_heads, width).to(dtype)
    angle = torch.randn(tokens, width // 2)
    rotary = tuple(torch.cat([f(angle)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    how = LayerAttention(layer, width**-0.5, window, softcap)
    config = Config(num_attention_heads=heads, num_key_value_heads=kv_heads)

    def gone(quick: Kernels | None, turned: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        """Outputs, and what is in the slots afterwards."""
        slots = Slots(Shape(2, heads, kv_heads, width), dtype, CPU, quick)
        slots.add([inside + n for n in lengths])
        for pool in slots.pools.values():  # what lies there must not matter
            pool.keys.fill_(float("nan") if quick else 0)
            pool.values.fill_(float("nan") if quick else 0)
        parts = [x.to(dtype) for x in (query, key, value, *shared)]
        beginning = Beginning(tuple(range(prefix)), *parts[3:]) if prefix else None
        if beginning and held:
            slots.fill(range(len(lengths)), beginning)
        ahead = reading.prompts(slots, rows, beginning, inside, config)
        assert isinstance(ahead, reading.ByKernels) == (quick is own)
        at = torch.cat([torch.arange(tokens).split(lengths)[row] for row in ahead.rows])
        assert ahead.ids_T.tolist() == [i for row in ahead.rows for i in rows[row]]
        assert ahead.positions_T.tolist() == [prefix + i for i in ahead.ids_T.tolist()]
        turns = turned and tuple(x[at].to(dtype) for x in turned)
        output = torch.empty_like(parts[0])
        output[at] = ahead.attend(*(x[at] for x in parts[:3]), turns, how)
        return [output, *(x[layer, :, inside:] for row in rows for x in slots.kept(row))]

    for turned in (rotary, None):
        exact = gone(None, turned, torch.float32)
        for ours, theirs in zip(gone(own, turned, dtype), exact, strict=True):
            near(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("lines", "depth", "columns"), [(1, 16, 16), (29, 48, 70), (13, 2, 1)])
def test_products(
    own: Kernels, dtype: torch.dtype, bias: bool, lines: int, depth: int, columns: int
) -> None:
    x = torch.randn(2, lines, 2 * depth).to(dtype)[..., :depth]
    layers = [torch.randn(columns, depth).to(dtype) for _ in range(2)]
    biases = [torch.randn(columns).to(dtype) for _ in range(2)] if bias else []
    plus = torch.randn(2, lines, 2 * columns).to(dtype)[..., :columns]
    one = own.lay_weights(layers[:1], biases[:1])
    pair = own.lay_weights(layers, biases)
    exact = [
        nn.functional.linear(x.float(), w.float(), b.float() if bias else None)
        for w, b in zip(layers, biases or layers)
    ]
    near(own.product(x, one), exact[0])
    near(own.product(x, one, plus), exact[0] + plus.float())
    near(own.product(x, pair), torch.cat(exact, -1))
    near(own.gated(x, pair), nn.functional.silu(exact[0]) * exact[1])
    assert own.product(x[:, :0], one).shape == (2, 0, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1, 16), (33, 48), (64, 64)])
def test_what_is_laid_out_holds_every_number_once(
    own: Kernels, dtype: torch.dtype, count: int, width: int
) -> None:
    lines = 1 + torch.randperm(count * width).view(1, count, width).to(torch.float32)
    lines = lines.to(dtype) if count * width < 256 else lines.remainder(251).to(dtype)
    for columns in (False, True):
        panels = own.lay(lines, columns=columns)
        values, counts = panels.unique(return_counts=True)
        wanted = dict(zip(*(x.tolist() for x in lines.unique(return_counts=True))))
        found = dict(zip(values.tolist(), counts.tolist()))
        found[0.0] = found.get(0.0, 0) - (panels.numel() - lines.numel())
        assert {k: n for k, n in found.items() if n} == wanted


@pytest.mark.parametrize("threads", [1, 3])
def test_more_threads_than_work(own: Kernels, threads: int) -> None:
    """A product does not depend on how many threads share it."""
    x, weight = torch.randn(40, 64), torch.randn(20, 64)
    wanted = own.product(x, own.lay_weights([weight], []))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(own.product(x, own.lay_weights([weight], [])), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", tiny.WIDE)
@pytest.mark.parametrize("shared", [0, 20, 70])
def test_answers_are_the_same_with_and_without(
    own: Kernels, kind: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = tiny.model(kind), prompts(12, shared)
    answers, scores = [], []
    for found in (own, "no compiler"):
        monkeypatch.setattr(kernels, "found", lambda found=found: found)
        with runner.opened(model) as running:
            assert isinstance(running, runner.Quick) and running.packed.replaced["norms"]
            assert running.kernels is (None if isinstance(found, str) else own)
            answers.append(said(running, asked)[0])
            scores.append(generation.score(running, asked[:4], [[[1, 2, 3], [1, 7]]] * 4))
    assert answers[0] == answers[1]
    torch.testing.assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]))


@pytest.mark.parametrize(
    ("kind", "shape", "at_once"),
    [
        ("llama wide", {}, 3),
        ("llama wide", {"attention_bias": True, "mlp_bias": True}, 3),
        ("llama wide", {"hidden_act": "gelu"}, 0),
        ("qwen3", {}, 0),  # it norms queries and keys
        ("gemma2", {}, 0),
    ],
)
def test_layers_that_go_through_in_one_call(
    own: Kernels, kind: str, shape: dict[str, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = tiny.model(kind, num_hidden_layers=4, **shape), prompts(12, 70)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not own.multiplies(model.get_output_embeddings().weight):
        pytest.skip("products go by oneDNN here")
    calls = []
    real = Kernels.layers
    monkeypatch.setattr(
        Kernels, "layers", lambda *args, **more: calls.append(1) or real(*args, **more)
    )
    with runner.opened(model) as running:
        assert isinstance(running, runner.Quick) and running.kernels is own
        assert running.packed.replaced["layers at once"] == at_once
        calls.clear()
        found = said(running, asked)[0], generation.score(running, asked[:4], [[[1, 2], [7]]] * 4)
    assert bool(calls) == bool(at_once)
    plain = runner.Plain(model)
    assert found[0] == said(plain, asked)[0]
    wanted = generation.score(plain, asked[:4], [[[1, 2], [7]]] * 4)
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_rows_have_room_for_all_that_may_come_and_it_is_not_zeroed(own: Kernels) -> None:
    rows = Slots(Shape(1, 2, 1, 16), torch.float32, CPU, own)
    rows.add([100, 30], ahead=[200, 10])
    assert [pool.tokens for pool, _ in rows.places] == [384, 128]
    first, line = rows.places[0]
    first.keys[:, line, :, :100] = 7.0
    rows.add([90] * 30, ahead=[220] * 30)  # its pool grows
    assert rows.places[0] == (first, line) and not first.zeroed
    assert (first.keys[:, line, :, :100] == 7).all()
    without = Slots(rows.shape, rows.dtype, CPU)
    without.add([100], ahead=[200])  # products go over all of it: it stays small
    assert without.places[0][0].tokens == 128


def test_kernels_that_are_wrong_give_way(own: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Kernels.attend
    monkeypatch.setattr(
        Kernels, "attend", lambda self, *args, **more: 2 * real(self, *args, **more)
    )
    with runner.opened(tiny.model("llama wide")) as running:
        assert isinstance(running, runner.Quick) and running.packed.replaced["norms"]
        assert running.kernels is None and running.slots.kernels is None


def test_no_kernels_where_they_would_not_fit(own: Kernels) -> None:
    config = Config(head_dim=None, hidden_size=128, num_attention_heads=2)
    assert kernels.for_model(config, torch.float32, CPU) is own
    assert kernels.for_model(config, torch.float16, CPU) is None
    assert kernels.for_model(config, torch.float32, torch.device("meta")) is None
    config.num_attention_heads = 4
    assert kernels.for_model(config, torch.float32, CPU) is own
    for config.head_dim, config.num_attention_heads in ((72, 2), (None, 16), (None, None)):
        assert kernels.for_model(config, torch.float32, CPU) is None


@pytest.mark.usefixtures("undecided")
class TestCompiling:
    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        found = kernels.found()
        assert isinstance(found, str) and "no C++ compiler" in found and "g++" in found
        with runner.opened(tiny.model("llama wide")) as running:
            assert isinstance(running, runner.Quick) and running.kernels is None

    def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._compiler(monkeypatch, tmp_path, "echo 'x.cpp:1: error: not today' >&2; exit 1")
        found = kernels.found()
        assert isinstance(found, str) and "not today" in found
        assert not list((tmp_path / "home" / "kernels").iterdir())

    def test_what_does_not_load_is_said(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._compiler(monkeypatch, tmp_path, 'for last; do :; done; echo nonsense > "$last"')
        found = kernels.found()
        assert isinstance(found, str) and "does not load" in found

    def test_a_home_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "home").write_text("a file")
        monkeypatch.setenv("TUNEWORTHY_HOME", str(tmp_path / "home"))
        assert isinstance(kernels.found(), str)

    def test_it_is_compiled_once(
        self, own: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TUNEWORTHY_HOME", str(tmp_path))
        assert isinstance(kernels.found(), Kernels)
        [library] = (tmp_path / "kernels").iterdir()
        monkeypatch.setattr(subprocess, "run", self._never)
        kernels.found.cache_clear()
        assert isinstance(kernels.found(), Kernels)
        assert [library] == list((tmp_path / "kernels").iterdir())

    @staticmethod
    def _never(*args: Any, **more: Any) -> None:
        raise AssertionError("it was compiled already")

    @staticmethod
    def _compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
        program = folder / "bin" / "c++"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setenv("TUNEWORTHY_HOME", str(folder / "home"))
