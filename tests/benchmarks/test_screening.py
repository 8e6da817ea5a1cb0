from __future__ import annotations

from _screening import Variant, finalists, screen

FORMATS = ("bfloat16", "autocast", "float32")
ARRANGEMENTS = ("grouped", "plain", "packed")


class Peer:
    """Rates by number format, arrangement and size multiplied; None fails."""

    def __init__(self, **factors: float | None) -> None:
        self.factors = factors
        self.tried: list[Variant] = []
        self.give_up: list[float] = []

    def __call__(self, variant: Variant, give_up_below: float) -> float | None:
        self.tried.append(variant)
        self.give_up.append(give_up_below)
        rate = 100.0
        for key in (variant.number_format, variant.arrangement, f"size{variant.size}"):
            factor = self.factors.get(key, 1.0)
            if factor is None:
                return None
            rate *= factor
        return rate


def screened(peer: Peer) -> dict[Variant, float | None]:
    return screen(peer, FORMATS, ARRANGEMENTS, (8, 16, 4))


def test_the_fastest_is_found_along_each_way() -> None:
    peer = Peer(autocast=0.5, float32=0.4, plain=0.6, packed=0.7, size4=1.2)
    rates = screened(peer)
    assert max(rates, key=lambda v: rates[v] or 0) == Variant("bfloat16", "grouped", 4)
    assert len(peer.tried) == 3 + 2 + 2 == len(rates)


def test_formats_close_to_the_fastest_are_tried_in_all_arrangements() -> None:
    peer = Peer(autocast=0.9, float32=0.5)
    screened(peer)
    tried = {(v.number_format, v.arrangement) for v in peer.tried}
    assert {("autocast", "plain"), ("autocast", "packed")} <= tried
    assert ("float32", "plain") not in tried


def test_sizes_are_tried_even_where_packs_lead() -> None:
    peer = Peer(autocast=0.1, float32=0.1, plain=0.5, packed=1.1, size4=1.5)
    rates = screened(peer)
    assert max(rates, key=lambda v: rates[v] or 0) == Variant("bfloat16", "grouped", 4)
    assert Variant("bfloat16", "packed", 1) in rates


def test_a_failed_trial_ends_nothing() -> None:
    rates = screened(Peer(bfloat16=None, size16=None))
    assert rates[Variant("bfloat16", "grouped", 8)] is None
    assert rates[Variant("autocast", "grouped", 16)] is None
    assert all(v.number_format != "bfloat16" for v in finalists(rates))


def test_nothing_works() -> None:
    rates = screened(Peer(bfloat16=None, autocast=None, float32=None))
    assert len(rates) == 3 and finalists(rates) == []


def test_trials_may_give_up_far_below_the_best_so_far() -> None:
    peer = Peer(autocast=2.0)
    screened(peer)
    assert peer.give_up[:3] == [0.0, 70.0, 140.0]


def test_only_what_is_close_is_measured_twice() -> None:
    a, b, c = (Variant("bfloat16", "grouped", size) for size in (4, 8, 16))
    assert finalists({a: 80.0, b: 100.0, c: 95.0}) == [b, c]
    assert finalists({a: 80.0, b: 100.0, c: None}) == [b]


def test_names_tell_rows_and_passes() -> None:
    assert Variant("bfloat16", "grouped", 4).name(16) == "trl bfloat16 grouped 4×4"
    assert Variant("float32", "packed", 1).name(16) == "trl float32 packed"
