"""What rows begin with is computed once, and everything is as if it were repeated."""

from __future__ import annotations

import pytest

from tests.fakes import learning, tiny
from tests.fakes.learning import METHODS
from tuneworthy.engine.packing import SHARED_PREFIX_AT_LEAST, TokenRow, pack, shared_prefix


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_once_is_as_good_as_repeated(kind: str, method: str) -> None:
    rows, model = learning.rows((9, 3, 20, 12, 2), shared=37), learning.prepared(kind, method)
    wanted = learning.reference(model, rows)
    once, repeated = pack(rows, block=16), pack(rows, share=False, block=16)
    assert (once.prefix, repeated.prefix) == (37, 0)
    assert once.tokens == 37 + 46 and repeated.tokens == 5 * 37 + 46
    with learning.learning(model, rows) as learner:
        found = learning.packed_gradients(learner.packed, [once])
        learning.same(found, learning.packed_gradients(learner.packed, [repeated]))
        learning.same(found, wanted)


def test_a_prefix_ends_before_the_last_token_of_every_prompt() -> None:
    shared = list(range(40))
    assert shared_prefix([TokenRow([*shared, 1, 5], 41), TokenRow([*shared, 2, 6], 41)]) == 40
    assert shared_prefix([TokenRow([*shared, 5], 40), TokenRow([*shared, 6], 40)]) == 39
    # The same prompt and the same completion: labels are never shared.
    assert shared_prefix([TokenRow(shared, 30), TokenRow(shared, 35)]) == 29
    short = shared[:SHARED_PREFIX_AT_LEAST]
    assert shared_prefix([TokenRow([*short, 1, 5], 17), TokenRow([*short, 2, 6], 17)]) == len(short)
    assert shared_prefix([TokenRow([*short[1:], i, 5], 16) for i in (1, 2)]) == 0
    assert shared_prefix([TokenRow(shared, 30)]) == 0


def test_rows_that_are_one_another_learn_twice() -> None:
    [row] = learning.rows((40,))
    model = learning.prepared("llama", "full")
    wanted = learning.reference(model, [row, row])
    with learning.learning(model, [row]) as learner:
        laid = pack([row, row], block=8)
        assert laid.prefix == row.prompt_length - 1 >= SHARED_PREFIX_AT_LEAST
        learning.same(learning.packed_gradients(learner.packed, [laid]), wanted)
