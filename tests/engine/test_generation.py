"""The scheduler and its runners: who runs when, what is kept, what happens without memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.fakes import tiny
from tuneworthy.engine import generation, layers, products, runner, slots, stepping
from tuneworthy.engine.beside import Adapter
from tuneworthy.engine.generation import Row, Scheduler
from tuneworthy.engine.runner import Plain, Quick, opened
from tuneworthy.engine.slots import Pool, Shape, Slots
from tuneworthy.errors import ModelError
from tuneworthy.types import Decoding

END = 2


def prompts(count: int, shared: int = 0) -> list[list[int]]:
    dice = random.Random(count)
    beginning = [dice.randrange(4, 400) for _ in range(shared)]
    return [
        beginning + [dice.randrange(4, 400) for _ in range(dice.randint(1, 30))]
        for _ in range(count)
    ]


def said(
    running: Any,
    asked: Sequence[list[int]],
    tokens: int = 8,
    owners: Sequence[Adapter | None] | None = None,
    **more: Any,
) -> tuple[list[list[int]], Scheduler]:
    found: dict[int, list[int]] = {}
    scheduler = Scheduler(
        running,
        stop_ids=frozenset([END]),
        stop=(),
        decode=lambda ids: " ".join(map(str, ids)),
        on_answer=lambda i, answer: found.__setitem__(i, [int(x) for x in answer.text.split()]),
        **more,
    )
    scheduler.add(
        Row(i, ids, Decoding(max_tokens=tokens), adapter=owner)
        for i, (ids, owner) in enumerate(zip(asked, owners or [None] * len(asked)))
    )
    while scheduler.busy:
        scheduler.step()
    return [found[i] for i in range(len(asked))], scheduler


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("shared", [0, 20])
def test_a_model_that_is_not_known_says_the_same(kind: str, shared: int) -> None:
    model, asked = tiny.model(kind), prompts(12, shared)
    with opened(model) as quick:
        assert isinstance(quick, Quick)
        wanted, _ = said(quick, asked)
    assert said(Plain(model), asked)[0] == wanted


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("shared", [0, 20, 70])
def test_rows_that_outgrow_their_pool_go_on_in_another(
    kind: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "LEAST_ROOM", 8)
    monkeypatch.setattr(slots, "SPARE_TOKENS", 4)
    model, asked = tiny.model(kind), prompts(14, shared)
    pools: set[int] = set()
    with opened(model) as quick:
        assert isinstance(quick, Quick)
        quick.rows_at_most = 6
        step = quick.step

        def stepping(ids: Sequence[int]) -> torch.Tensor:
            found = step(ids)
            pools.add(len(quick.slots.pools))
            for row, (pool, line) in enumerate(quick.slots.places):
                assert pool.rows[line] == row and quick.slots.lengths[row] <= pool.tokens
            return found

        monkeypatch.setattr(quick, "step", stepping)
        read = quick.read  # kernels would have room for all that may come from the start
        monkeypatch.setattr(quick, "read", lambda rows, owners, ahead: read(rows, owners))
        answers, _ = said(quick, asked, tokens=40)
        assert not quick.slots.pools, "room is given back"
    assert len(pools) > 1
    assert answers == said(Plain(model), asked, tokens=40)[0]


def test_a_pool_grows_once_for_all_rows_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_in = Slots(Shape(1, 2, 1, 4), torch.float32, torch.device("cpu"))
    grown: list[int] = []
    grow = Pool.grow

    def watched(pool: Pool, lines: int, lengths: Sequence[int]) -> None:
        before = pool.keys.shape[1]
        grow(pool, lines, lengths)
        grown.extend([pool.keys.shape[1]] * (pool.keys.shape[1] > before))

    monkeypatch.setattr(Pool, "grow", watched)
    rows_in.add([100] * 40)
    rows_in.make_room(100)  # all of them move
    assert grown == [40, 40]
    assert list(rows_in.pools) == [256]
    assert sorted(rows_in.pools[256].rows) == list(range(40))


def test_rows_move_up_while_the_pool_that_they_go_to_is_left_by_others() -> None:
    rows_in = Slots(Shape(1, 1, 1, 1), torch.float32, torch.device("cpu"))
    rows = rows_in.add([380, 120, 121])
    for row in rows:
        pool, line = rows_in.places[row]
        pool.keys[:, line, :, : rows_in.lengths[row]] = row + 1.0
    rows_in.make_room(75)  # the long one leaves the room that the others come into
    for row in rows:
        pool, line = rows_in.places[row]
        assert pool is rows_in.pools[pool.tokens]
        assert pool.rows[line] == row
        assert pool.tokens >= rows_in.lengths[row] + 75
        assert rows_in.kept(row)[0].unique().tolist() == [row + 1.0]


def test_a_beginning_that_is_kept_does_not_keep_its_pool() -> None:
    rows_in = Slots(Shape(2, 6, 3, 4), torch.float32, torch.device("cpu"))
    rows_in.add([24])
    for kept in rows_in.kept(0):
        assert kept.shape == (2, 3, 24, 4)
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.itemsize


def test_room_grows_by_a_half_at_most() -> None:
    rooms = [slots.next_room(tokens) for tokens in range(1, 3000)]
    assert sorted(set(rooms)) == [128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072]
    assert all(room >= tokens for tokens, room in enumerate(rooms, 1))


def test_layers_that_are_wrong_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layers.attend
    monkeypatch.setattr(layers, "attend", lambda query, *args: real(query * 1.2, *args))
    with opened(tiny.model()) as running:
        assert isinstance(running, Quick) and not running.packed.replaced
    monkeypatch.undo()
    with opened(tiny.model()) as running:
        assert isinstance(running, Quick) and running.packed.replaced["attention blocks"] == 2
    for way in (stepping.Eager, stepping.Compiled):
        monkeypatch.setattr(way, "attend", lambda self, query, *args: query)
    with opened(tiny.model()) as running:
        assert isinstance(running, Plain)


@pytest.mark.parametrize("kind", ["llama", "llama biased", "gemma2"])
def test_sixteen_bits_take_reordered_weights(kind: str) -> None:
    model = tiny.model(kind)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.bfloat16()
    asked = prompts(9, shared=10)
    with opened(model) as running:
        assert isinstance(running, Quick)
        assert running.packed.replaced["linear layers"] >= 14
        scores = generation.score(running, asked, [[[5, 6]]] * 9)
    plain = generation.score(Plain(model), asked, [[[5, 6]]] * 9)
    wanted = torch.tensor(plain)
    assert (torch.tensor(scores) - wanted).norm() <= 0.05 * wanted.norm()


@pytest.mark.parametrize(("copies", "reordered"), [(2.9, False), (3.1, True)])
def test_weights_are_kept_twice_only_where_memory_allows(
    copies: float, reordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = tiny.model(), prompts(6)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    monkeypatch.setattr(layers.memory, "available", lambda device: int(copies * size))
    made: list[int] = []
    real = products._OneDNN.__call__

    def counted(self: Any, x: torch.Tensor, *args: Any) -> torch.Tensor:
        made.append(x.numel() // x.shape[-1])
        return real(self, x, *args)

    monkeypatch.setattr(products._OneDNN, "__call__", counted)
    with opened(model) as running:
        found, _ = said(running, asked)
    assert found == said(Plain(model), asked)[0]
    assert bool(made) == reordered
    assert all(rows in products.FEW_ROWS[torch.float32] for rows in made)


def test_the_models_own_way_is_back_afterwards() -> None:
    model = tiny.model()
    native = model.config._attn_implementation
    with opened(model):
        assert model.config._attn_implementation != native
    assert model.config._attn_implementation == native
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_rows_that_come_later_join_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(30)
    with opened(tiny.model()) as running:
        wanted, _ = said(running, asked)
        monkeypatch.setattr(Quick, "rows_at_most", 5)
        found: dict[int, str] = {}
        scheduler = Scheduler(
            running,
            stop_ids=frozenset([END]),
            stop=(),
            decode=lambda ids: " ".join(map(str, ids)),
            on_answer=lambda i, answer: found.__setitem__(i, answer.text),
        )
        most = 0
        for i, ids in enumerate(asked):
            scheduler.add([Row(i, ids, Decoding(max_tokens=8))])
            scheduler.step()
            most = max(most, len(scheduler.running))
        while scheduler.busy:
            scheduler.step()
    assert 1 < most <= 5
    assert [found[i] for i in range(30)] == [" ".join(map(str, ids)) for ids in wanted]


def test_a_beginning_is_read_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Quick._hidden

    def counted(self: Quick, ids_T: torch.Tensor, *args: Any) -> Any:
        read.append(len(ids_T))
        return real(self, ids_T, *args)

    asked = prompts(6, shared=40)
    own = sum(len(ids) - 40 for ids in asked)
    with opened(tiny.model()) as running:
        monkeypatch.setattr(Quick, "_hidden", counted)
        first, _ = said(running, asked, tokens=1)
        assert read == [40, own]
        read.clear()
        assert said(running, asked, tokens=1)[0] == first
        assert read == [own]
        read.clear()
        said(running, asked[:1], tokens=1)
        assert read == [len(asked[0]) - 40]
        # A longer beginning goes on where the shorter one ends.
        read.clear()
        longer = [[*asked[0][:40], *range(50, 60), i] for i in range(4, 8)]
        said(running, longer, tokens=1)
        assert read == [10, 4]


def test_memory_for_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(40)
    with opened(tiny.model()) as running:
        wanted, _ = said(running, asked)
        bytes_a_row = running.row_bytes(30 + 8)
        monkeypatch.setattr(generation, "CACHE_BYTES", 7 * bytes_a_row)
        read, together = running.read, []

        def reading(rows: list[list[int]], *more: Any) -> torch.Tensor:
            found = read(rows, *more)
            together.append(len(running.slots.lengths))  # type: ignore[attr-defined]
            return found

        monkeypatch.setattr(running, "read", reading)
        assert said(running, asked)[0] == wanted
        assert 1 < max(together) < 20


def test_memory_that_runs_out_halves_the_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, steps, notes = prompts(16), [0], list[str]()
    real = Quick.step

    def scarce(self: Quick, ids: Sequence[int]) -> torch.Tensor:
        steps[0] += 1
        if len(ids) > 8 and steps[0] > 3:
            raise torch.OutOfMemoryError("out of memory: cannot allocate")
        return real(self, ids)

    with opened(tiny.model()) as running:
        wanted, _ = said(running, asked)
        monkeypatch.setattr(Quick, "step", scarce)
        found, scheduler = said(running, asked, say=notes.append)
    assert found == wanted
    assert scheduler.rows_at_most <= 8 and len(notes) == 1 and "memory ran out" in notes[0]


def test_memory_that_runs_out_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Quick, ids: Sequence[int]) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Quick, "step", never)
    with (
        pytest.raises(ModelError, match="memory does not suffice"),
        monkeypatch.context() as patched,
    ):
        patched.setattr(runner, "_agrees", lambda *args: True)
        with opened(tiny.model()) as running:
            said(running, prompts(8))


def test_another_error_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tiny.model()) as running:
        monkeypatch.setattr(Quick, "step", lambda self, ids: torch.zeros(1) @ torch.zeros(2))
        with pytest.raises(RuntimeError, match="size"):
            said(running, prompts(3))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("shared", [0, 30])
def test_scores_are_those_of_a_plain_forward_pass(kind: str, shared: int) -> None:
    model, asked = tiny.model(kind), prompts(9, shared)
    dice = random.Random(1)
    wanted = [
        [[dice.randrange(4, 400) for _ in range(dice.randint(1, 5))] for _ in range(1 + i % 4)]
        for i in range(len(asked))
    ]
    plain = generation.score(Plain(model), asked, wanted)
    with opened(model) as running:
        assert isinstance(running, Quick)
        quick = generation.score(running, asked, wanted)
        again = generation.score(running, asked[:1], wanted[:1])
    flat = [[x for row in found for x in row] for found in (quick, plain)]
    assert flat[0] == pytest.approx(flat[1], abs=2e-4)
    assert again[0] == pytest.approx(quick[0], abs=2e-4)


def test_a_row_hands_on_its_text_as_it_grows() -> None:
    texts: list[str] = []
    answers: list[str] = []
    with opened(tiny.model()) as running:
        scheduler = Scheduler(
            running,
            stop_ids=frozenset(),
            stop=(),
            decode=lambda ids: " ".join(map(str, ids)),
            on_answer=lambda i, answer: answers.append(answer.text),
        )
        row = Row(
            0, [5, 6, 7], Decoding(max_tokens=4), on_text=lambda i, text: texts.append(text())
        )
        scheduler.add([row])
        while scheduler.busy:
            scheduler.step()
    assert [len(text.split()) for text in texts] == [1, 2, 3]
    assert len(answers[0].split()) == 4 and answers[0].startswith(texts[-1])


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_tokens_are_drawn_by_their_probability_out_of_the_nucleus(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LIKELIEST", 4)  # a nucleus that is looked for twice
    p_V = torch.softmax(torch.randn(40, generator=torch.Generator().manual_seed(5)), -1)
    p_V[:2] = 0.0  # what a grammar forbids
    p_V /= p_V.sum()
    order = p_V.sort(descending=True)
    kept = order.values.cumsum(-1) - order.values < top_p  # the fewest that have so much together
    expected = torch.zeros(40).index_copy(0, order.indices[kept], order.values[kept])
    expected /= expected.sum()
    dice, draws = torch.Generator().manual_seed(1), 4000
    drawn = [generation._draw(p_V, top_p, dice) for _ in range(draws)]
    counts = torch.bincount(torch.tensor(drawn), minlength=40)
    assert not counts[expected == 0].any()
    likely = expected > 0
    chi2 = ((counts - draws * expected)[likely] ** 2 / (draws * expected[likely])).sum()
    assert chi2 < 2 * int(likely.sum()) + 12  # 1 in 1,000 or rarer for as many words


def test_a_draw_at_the_end_of_the_line_takes_no_forbidden_token() -> None:
    p_V = torch.tensor([0.0, 1.0, 0.0])
    assert {generation._draw(p_V, 1.0, torch.Generator().manual_seed(s)) for s in range(50)} == {1}
