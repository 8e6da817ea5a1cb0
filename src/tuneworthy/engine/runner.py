"""A model that answers rows in slots: reads prompts, steps, scores; knows ids and no strings.

Like training, answering goes its own quick way through a model only where that gives the model's
own logits, which is tried when the model is opened; any other model runs one row at a time through
its own code, with the same results and more slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache

from tuneworthy.engine import attention, layers, packing
from tuneworthy.engine.attention import Attending
from tuneworthy.engine.learner import PackedModel
from tuneworthy.engine.packing import TokenRow
from tuneworthy.engine.slots import Beginning, Filled, Reading, Shape, Slots, Stepping, rounded

ROWS = 64
"""Answered at one time."""
READ_TOKENS = 2048
"""Prompt tokens that go through the model at once."""
LOGITS_ROWS = 256
"""Whose logits exist at one time when continuations are scored."""
PROBE_SHARED, PROBE_TOKENS, PROBE_WINDOW = 8, (10, 17, 40), 1024
KEPT_BEGINNINGS = 8
APART_AT_LEAST = 64
"""A beginning of fewer tokens is copied into every slot: attending to it apart costs more."""


class Runner(Protocol):
    """Rows in slots 0, 1, …; the last row moves into a slot that is freed."""

    rows_at_most: int

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt are kept from earlier beginnings."""
        ...

    def begin(self, ids: Sequence[int]) -> None:
        """Forget all rows; take up what those to come begin with."""
        ...

    def row_bytes(self, tokens: int) -> int:
        """Memory of a row of so many tokens behind the beginning."""
        ...

    def read(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Take up rows, each given behind the beginning; (N, V) logits of their next tokens."""
        ...

    def step(self, ids: Sequence[int]) -> torch.Tensor:
        """Each row's next token; (B, V) logits of the one after it."""
        ...

    def free(self, row: int) -> None: ...

    def score(
        self, rows: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[float]]:
        """Log-probability of each row's continuations; forgets all rows."""
        ...


class Quick:
    """All rows together: packs for prompts, one token a row for answers."""

    rows_at_most = ROWS

    def __init__(self, packed: PackedModel) -> None:
        self.packed, self.config = packed, packed.config
        self.shape, self.dtype = Shape.of(self.config), packed.causal.dtype
        self.slots = self._new_slots()
        self.beginning: Beginning | None = None
        self.inside = 0
        """Tokens of the beginning that each slot holds itself; else it is attended to apart."""
        self._kept: dict[tuple[int, ...], Beginning] = {}

    def _new_slots(self) -> Slots:
        return Slots(self.shape, self.dtype, self.packed.device)

    def row_bytes(self, tokens: int) -> int:
        return tokens * self.shape.bytes(self.dtype.itemsize)

    def known(self, ids: Sequence[int]) -> int:
        return max((_common(kept, ids) for kept in self._kept), default=0)

    def begin(self, ids: Sequence[int]) -> None:
        self.slots.clear()
        self.beginning, wanted = None, tuple(ids)
        self.inside = len(wanted) if len(wanted) < APART_AT_LEAST else 0
        if not wanted:
            return
        known = self.known(wanted)
        if known:
            nearest = max(self._kept, key=lambda kept: _common(kept, wanted))
            self.beginning = self._kept[nearest].first(known)
        if known < len(wanted):
            self.beginning = self._kept[wanted] = self._continued(wanted, self.beginning)
            while len(self._kept) > KEPT_BEGINNINGS:
                del self._kept[next(iter(self._kept))]

    def _continued(self, wanted: tuple[int, ...], found: Beginning | None) -> Beginning:
        """A beginning, of which some tokens may be there already."""
        slots, before = self._new_slots(), len(found.ids) if found else 0
        self._read(slots, found, [list(wanted[before:])])
        keys, values = slots.kept(0)
        if found:
            keys = torch.cat([found.keys, keys], 2)
            values = torch.cat([found.values, values], 2)
        return Beginning(wanted, keys, values)

    def read(self, rows: Sequence[list[int]]) -> torch.Tensor:
        return self._logits(self._read(self.slots, self.beginning, rows, self.inside))

    def _read(
        self,
        slots: Slots,
        beginning: Beginning | None,
        rows: Sequence[list[int]],
        inside: int = 0,
    ) -> torch.Tensor:
        """Last hidden states of each row's last token, (N, C)."""
        before = list(beginning.ids) if beginning else []
        added = slots.add([inside + len(row) for row in rows])
        if beginning and inside:
            slots.fill(added, beginning)
        found: dict[int, torch.Tensor] = {}
        for part in _parts([len(row) for row in rows]):
            place = {i: TokenRow(before + rows[i], len(before) + len(rows[i])) for i in part}
            pack = packing.pack(list(place.values()), prefix=len(before))
            number = {id(row): i for i, row in place.items()}
            order = [number[id(row)] for row in pack.order]
            places = [added[i] for i in order]
            reading = Reading(pack, self.config, slots, places, beginning, inside)
            ids_T, positions_T = (x[len(before) :] for x in (pack.ids_T, pack.positions_T))
            found |= zip(order, self._hidden(ids_T, positions_T, reading))
        return torch.stack([found[i] for i in range(len(rows))])

    def step(self, ids: Sequence[int]) -> torch.Tensor:
        depths = torch.zeros(len(ids), 1, dtype=torch.long)
        hidden_B_1_C = self._branched(torch.tensor(ids)[:, None], depths, depths[..., None] == 0)
        self.slots.lengths = [length + 1 for length in self.slots.lengths]
        return self._logits(hidden_B_1_C[:, 0])

    def free(self, row: int) -> None:
        self.slots.free(row)

    def score(
        self, rows: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[float]]:
        """Continuations of a row are branches behind one reading of it."""
        self.slots.clear()
        count = max(sum(len(ids) - 1 for ids in of_row) for of_row in continuations)
        ends_B_C = self._read(self.slots, self.beginning, rows, self.inside)
        hidden_B_Q_C = ends_B_C[:, None]
        if count:
            trees = [_tree(of_row, count) for of_row in continuations]
            after = self._branched(*(torch.stack(parts) for parts in zip(*trees)))
            hidden_B_Q_C = torch.cat([hidden_B_Q_C, after], 1)
        self.slots.clear()
        sources, targets = [], []
        for row, of_row in enumerate(continuations):
            start = row * (count + 1)
            place = start + 1
            for ids in of_row:
                sources += [start, *range(place, place + len(ids) - 1)]
                targets += ids
                place += len(ids) - 1
        found = iter(self._log_probabilities(hidden_B_Q_C.flatten(0, 1), sources, targets))
        return [[sum(next(found) for _ in ids) for ids in of_row] for of_row in continuations]

    def _log_probabilities(
        self, hidden_N_C: torch.Tensor, sources: list[int], targets: list[int]
    ) -> list[float]:
        """Of each target after the hidden state that its source names."""
        used, source_L = torch.tensor(sources).unique(return_inverse=True)
        target_L, found_L = torch.tensor(targets), torch.empty(len(targets))
        for start in range(0, len(used), LOGITS_ROWS):
            chunk = used[start : start + LOGITS_ROWS].to(hidden_N_C.device)
            log_p = self._logits(hidden_N_C[chunk]).log_softmax(-1, dtype=torch.float32)
            mine = ((source_L >= start) & (source_L < start + LOGITS_ROWS)).nonzero()[:, 0]
            picked = log_p[
                (source_L[mine] - start).to(log_p.device), target_L[mine].to(log_p.device)
            ]
            found_L[mine] = picked.cpu()
        return [float(x) for x in found_L.double()]

    def _branched(
        self, ids_B_Q: torch.Tensor, depths_B_Q: torch.Tensor, sees_B_Q_Q: torch.Tensor
    ) -> torch.Tensor:
        """Last hidden states of new tokens behind the rows, (B, Q, C)."""
        self.slots.make_room(ids_B_Q.shape[1])
        apart = None if self.inside else self.beginning
        stepping = Stepping(self.slots, apart, depths_B_Q, sees_B_Q_Q)
        positions, ids = stepping.positions_B_Q.reshape(-1), ids_B_Q[stepping.order]
        hidden_B_Q_C = self._hidden(ids.reshape(-1), positions, stepping).view(*ids.shape, -1)
        return hidden_B_Q_C[stepping.order.argsort().to(hidden_B_Q_C.device)]

    def _hidden(self, ids_T: torch.Tensor, positions_T: torch.Tensor, pack: Attending) -> Any:
        """Last hidden states at the pack's label positions, (L, C)."""
        filled = Filled(pack, len(ids_T), rounded(len(ids_T)))
        ids_T, positions_T = (nn.functional.pad(x, (0, filled.more)) for x in (ids_T, positions_T))
        hidden_1_T_C = self.packed.causal.get_decoder()(
            input_ids=ids_T[None].to(self.packed.device),
            position_ids=positions_T[None].to(self.packed.device),
            use_cache=False,
            pack=filled,
        ).last_hidden_state
        if not filled.labels_only:
            hidden_1_T_C = hidden_1_T_C.index_select(1, filled.label_positions_L)
        return hidden_1_T_C[0, : filled.labels]

    def _logits(self, hidden_N_C: torch.Tensor) -> torch.Tensor:
        count = len(hidden_N_C)
        hidden_N_C = nn.functional.pad(hidden_N_C, (0, 0, 0, rounded(count) - count))
        logits_N_V: torch.Tensor = self.packed.causal.get_output_embeddings()(hidden_N_C)[:count]
        cap = self.packed.softcap
        return logits_N_V if cap is None else cap * torch.tanh(logits_N_V / cap)


class Plain:
    """One row at a time through the model's own code and cache."""

    rows_at_most = 1

    def __init__(self, model: Any) -> None:
        self.model, self.caches = model, []  # type: ignore[var-annotated]

    def row_bytes(self, tokens: int) -> int:
        """Not known: there is one row."""
        return 0

    def known(self, ids: Sequence[int]) -> int:
        return 0

    def begin(self, ids: Sequence[int]) -> None:
        assert not ids
        self.caches.clear()

    def read(self, rows: Sequence[list[int]]) -> torch.Tensor:
        made = [DynamicCache(config=self.model.config) for _ in rows]
        self.caches += made
        return torch.stack([self._next(row, cache) for row, cache in zip(rows, made)])

    def step(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._next([i], cache) for i, cache in zip(ids, self.caches)])

    def _next(self, ids: list[int], cache: Any) -> torch.Tensor:
        ids_1_T = torch.tensor([ids], device=self.model.device)
        out = self.model(input_ids=ids_1_T, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits_V: torch.Tensor = out.logits[0, -1]
        return logits_V

    def free(self, row: int) -> None:
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def score(
        self, rows: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[float]]:
        return [[self._scored(row, ids) for ids in many] for row, many in zip(rows, continuations)]

    def _scored(self, row: list[int], continuation: list[int]) -> float:
        ids_1_T = torch.tensor([row + continuation], device=self.model.device)
        logits_T_V = self.model(input_ids=ids_1_T, logits_to_keep=len(continuation) + 1).logits[0]
        log_p = logits_T_V[:-1].log_softmax(-1, dtype=torch.float32)
        targets = torch.tensor(continuation, device=log_p.device)[:, None]
        return float(log_p.gather(1, targets).double().sum())


@contextmanager
def opened(model: Any) -> Iterator[Runner]:
    """The model on its quickest way that gives its own logits."""
    attention.register()
    packed = PackedModel(model)
    packed.eval()
    native, rows = packed.config._attn_implementation, _probes(packed)
    wanted = [_own_logits(packed, row) for row in rows]
    try:
        packed.causal.set_attn_implementation(attention.NAME)
        for way in (layers.replaced(model, answering=True), nullcontext()):
            with way as replaced:
                packed.replaced = replaced or {}
                runner = Quick(packed)
                if _agrees(runner, rows, wanted):
                    yield runner
                    return
        packed.causal.set_attn_implementation(native)
        yield Plain(model)
    finally:
        packed.causal.set_attn_implementation(native)


def _probes(packed: PackedModel) -> list[list[int]]:
    """Rows of random ids with one beginning, one of them longer than a sliding window."""
    window = min(getattr(packed.config, "sliding_window", None) or 0, PROBE_WINDOW)
    random = torch.Generator().manual_seed(0)
    lengths = (*PROBE_TOKENS, window + PROBE_SHARED)
    ids = torch.randint(packed.config.vocab_size, (max(lengths),), generator=random).tolist()
    return [
        ids[:PROBE_SHARED] + ids[-(n - PROBE_SHARED) :] for n in lengths if n > PROBE_SHARED + 1
    ]


@torch.inference_mode()
def _own_logits(packed: PackedModel, row: list[int]) -> torch.Tensor:
    """(2, V) of the last two tokens."""
    ids_1_T = torch.tensor([row], device=packed.device)
    logits_2_V: torch.Tensor = packed.model(input_ids=ids_1_T, logits_to_keep=2).logits[0]
    return logits_2_V.float()


@torch.inference_mode()
def _agrees(runner: Quick, rows: list[list[int]], wanted: list[torch.Tensor]) -> bool:
    """Whether reading all but the last tokens and stepping over those gives the wanted logits."""
    try:
        runner.begin(rows[0][:PROBE_SHARED])
        read = runner.read([row[PROBE_SHARED:-1] for row in rows])
        stepped = runner.step([row[-1] for row in rows])
        runner.begin(())
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    ours, theirs = torch.stack([read, stepped], 1).float(), torch.stack(wanted)
    if ours.shape != theirs.shape or not torch.isfinite(ours).all():
        return False
    tolerance = 1e-3 if runner.dtype == torch.float32 else 0.05
    # Sixteen bits round at every layer: compare the difference as a whole, not each logit.
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    pairs = zip(some, others)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))


def _parts(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers cut into parts of at most READ_TOKENS tokens, or of one row."""
    parts: list[list[int]] = []
    tokens = 0
    for i, length in enumerate(lengths):
        if not parts or tokens + length > READ_TOKENS:
            parts.append([])
            tokens = 0
        parts[-1].append(i)
        tokens += length
    return parts


def _tree(
    continuations: Sequence[list[int]], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (Q,), depths (Q,) and who sees whom (Q, Q) of branches without their last tokens.

    Filled up to `count` with tokens that see themselves and are seen by nobody else.
    """
    ids, depths = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    sees, start = torch.eye(count, dtype=torch.bool), 0
    for continuation in continuations:
        length = len(continuation) - 1
        branch = slice(start, start + length)
        ids[branch] = torch.tensor(continuation[:-1], dtype=torch.long)
        depths[branch] = torch.arange(length)
        sees[branch, branch] = torch.ones(length, length, dtype=torch.bool).tril()
        start += length
    return ids, depths, sees
