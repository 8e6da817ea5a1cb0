"""A model that answers rows in slots: reads prompts, steps, scores; knows ids and no strings.

Like training, answering goes its own quick way through a model only where that gives the model's
own logits, which is tried when the model is opened; any other model runs one row at a time through
its own code, with the same results and more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache

from tuneworthy.engine import attention, layers, reading, stepping
from tuneworthy.engine.attention import Attending
from tuneworthy.engine.beside import Adapter, Beside
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.learner import Agreed, PackedModel
from tuneworthy.engine.slots import Beginning, Filled, Shape, Slots, rounded

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

    adapts: bool
    """Whether rows may have adapters beside the model's weights, each its own."""

    def known(self, ids: Sequence[int], adapter: Adapter | None = None) -> int:
        """How many tokens of a prompt are kept from earlier beginnings."""
        ...

    def begin(self, ids: Sequence[int]) -> None:
        """Forget all rows; those to come begin with these ids."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether rows with this beginning may have different adapters."""
        ...

    def row_bytes(self, tokens: int) -> int:
        """Memory of a row of so many tokens behind the beginning."""
        ...

    def read(
        self,
        rows: Sequence[list[int]],
        adapters: Sequence[Adapter | None] | None = None,
        ahead: Sequence[int] = (),
    ) -> torch.Tensor:
        """Take up rows, each given behind the beginning; (N, V) logits of their next tokens.

        `ahead`: how many tokens each may still get, if that is known.
        """
        ...

    def step(self, ids: Sequence[int]) -> torch.Tensor:
        """Each row's next token; (B, V) logits of the one after it."""
        ...

    def likeliest(self, logits_N_V: torch.Tensor) -> list[int]:
        """Where each line's highest logit is, the first of equals."""
        ...

    def free(self, row: int) -> None: ...

    def score(
        self,
        rows: Sequence[list[int]],
        continuations: Sequence[Sequence[list[int]]],
        adapter: Adapter | None = None,
    ) -> list[list[float]]:
        """Log-probability of each row's continuations; forgets all rows."""
        ...


class Quick:
    """All rows together: packs for prompts, one token a row for answers."""

    rows_at_most = ROWS

    def __init__(self, packed: PackedModel, beside: Beside) -> None:
        self.packed, self.config, self.beside = packed, packed.config, beside
        self.kernels = packed.kernels
        self.adapts = bool(packed.replaced.get("linear layers"))
        self.shape, self.dtype = Shape.of(self.config), packed.causal.dtype
        head = packed.causal.get_output_embeddings().weight
        own = self.kernels and self.kernels.multiplies(head) >= READ_TOKENS
        self._filled: Callable[[int], int] = int if own else rounded
        """With how many lines so many go through products."""
        self.slots = self._new_slots()
        self.adapters: list[Adapter | None] = []
        """Of each row."""
        self.wanted: tuple[int, ...] = ()
        """What rows begin with."""
        self.apart: Beginning | None = None
        """It, if it is attended to apart: then all rows have one adapter. Else slots hold it."""
        self._kept: dict[tuple[Adapter | None, tuple[int, ...]], Beginning] = {}

    def _new_slots(self) -> Slots:
        return Slots(self.shape, self.dtype, self.packed.device, self.kernels)

    def row_bytes(self, tokens: int) -> int:
        return tokens * self.shape.bytes(self.dtype.itemsize)

    def known(self, ids: Sequence[int], adapter: Adapter | None = None) -> int:
        return max(
            (_common(kept, ids) for owner, kept in self._kept if owner is adapter), default=0
        )

    def begin(self, ids: Sequence[int]) -> None:
        self.slots.clear()
        self.adapters, self.wanted, self.apart = [], tuple(ids), None

    @property
    def _held(self) -> int:
        """Tokens of the beginning that each slot holds itself: all, or it is attended to apart."""
        return len(self.wanted) if len(self.wanted) < APART_AT_LEAST else 0

    @property
    def mixes(self) -> bool:
        return self.adapts and self._held == len(self.wanted)

    def _beginning(self, adapter: Adapter | None) -> Beginning:
        """Keys and values of what rows begin with, as they were kept or read now."""
        known = self.known(self.wanted, adapter)
        found = None
        if known:
            mine = (key for key in self._kept if key[0] is adapter)
            found = self._kept[max(mine, key=lambda key: _common(key[1], self.wanted))].first(known)
        if found and known == len(self.wanted):
            return found
        slots, before = self._new_slots(), len(found.ids) if found else 0
        slots.add([len(self.wanted) - before])
        self._read(slots, {0: list(self.wanted[before:])}, adapter, found)
        keys, values = slots.kept(0)
        if found:
            keys = torch.cat([found.keys, keys], 2)
            values = torch.cat([found.values, values], 2)
        made = self._kept[adapter, self.wanted] = Beginning(self.wanted, keys, values)
        while len(self._kept) > KEPT_BEGINNINGS:
            del self._kept[next(iter(self._kept))]
        return made

    def read(
        self,
        rows: Sequence[list[int]],
        adapters: Sequence[Adapter | None] | None = None,
        ahead: Sequence[int] = (),
    ) -> torch.Tensor:
        return self._logits(self._taken(rows, adapters or [None] * len(rows), ahead))

    def _taken(
        self,
        rows: Sequence[list[int]],
        adapters: Sequence[Adapter | None],
        ahead: Sequence[int] = (),
    ) -> torch.Tensor:
        """Rows into slots; last hidden states of each one's last token, (N, C)."""
        held = self._held
        added = self.slots.add([held + len(row) for row in rows], ahead)
        self.adapters += adapters
        found: dict[int, torch.Tensor] = {}
        for adapter in dict.fromkeys(adapters):
            mine = [i for i, owner in enumerate(adapters) if owner is adapter]
            beginning = self._beginning(adapter) if self.wanted else None
            if beginning and held:
                self.slots.fill([added[i] for i in mine], beginning)
            self.apart = None if held else beginning
            places = {added[i]: rows[i] for i in mine}
            read = self._read(self.slots, places, adapter, beginning, held)
            found |= {i: read[added[i]] for i in mine}
        return torch.stack([found[i] for i in range(len(rows))])

    def _read(
        self,
        slots: Slots,
        rows: Mapping[int, list[int]],
        adapter: Adapter | None,
        beginning: Beginning | None,
        held: int = 0,
    ) -> dict[int, torch.Tensor]:
        """Rows of one adapter into their slots, of which each holds `held` tokens already.

        Last hidden states (C,) of each one's last token.
        """
        found: dict[int, torch.Tensor] = {}
        for part in _parts({slot: len(row) for slot, row in rows.items()}):
            some = {slot: rows[slot] for slot in part}
            ahead = reading.prompts(slots, some, beginning, held, self.config)
            found |= zip(ahead.rows, self._hidden(ahead.ids_T, ahead.positions_T, ahead, [adapter]))
        return found

    def step(self, ids: Sequence[int]) -> torch.Tensor:
        depths = torch.zeros(len(ids), 1, dtype=torch.long)
        hidden_B_1_C = self._branched(torch.tensor(ids)[:, None], depths, depths[..., None] == 0)
        self.slots.lengths = [length + 1 for length in self.slots.lengths]
        return self._logits(hidden_B_1_C[:, 0])

    def likeliest(self, logits_N_V: torch.Tensor) -> list[int]:
        if self.kernels:
            return self.kernels.likeliest(logits_N_V).tolist()
        return _likeliest(logits_N_V)

    def free(self, row: int) -> None:
        self.slots.free(row)
        self.adapters[row] = self.adapters[-1]
        self.adapters.pop()

    def score(
        self,
        rows: Sequence[list[int]],
        continuations: Sequence[Sequence[list[int]]],
        adapter: Adapter | None = None,
    ) -> list[list[float]]:
        """Continuations of a row are branches behind one reading of it."""
        self.begin(self.wanted)
        count = max(sum(len(ids) - 1 for ids in of_row) for of_row in continuations)
        ends_B_C = self._taken(rows, [adapter] * len(rows), [count] * len(rows))
        hidden_B_Q_C = ends_B_C[:, None]
        if count:
            trees = [_tree(of_row, count) for of_row in continuations]
            after = self._branched(*(torch.stack(parts) for parts in zip(*trees)))
            hidden_B_Q_C = torch.cat([hidden_B_Q_C, after], 1)
        self.begin(self.wanted)
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
            logits_N_V = self._logits(hidden_N_C[chunk])
            mine = ((source_L >= start) & (source_L < start + LOGITS_ROWS)).nonzero()[:, 0]
            at, to = ((source_L[mine] - start).to(chunk.device), target_L[mine].to(chunk.device))
            if self.kernels:
                sums_N = self.kernels.log_sums(logits_N_V)
                found_L[mine] = logits_N_V[at, to].float() - sums_N[at]
            else:
                found_L[mine] = logits_N_V.log_softmax(-1, dtype=torch.float32)[at, to].cpu()
        return [float(x) for x in found_L.double()]

    def _branched(
        self, ids_B_Q: torch.Tensor, depths_B_Q: torch.Tensor, sees_B_Q_Q: torch.Tensor
    ) -> torch.Tensor:
        """Last hidden states of new tokens behind the rows, (B, Q, C)."""
        self.slots.make_room(ids_B_Q.shape[1])
        ahead = stepping.next_tokens(self.slots, self.apart, depths_B_Q, sees_B_Q_Q)
        positions, ids = ahead.positions_B_Q.reshape(-1), ids_B_Q[ahead.order]
        owners = [self.adapters[row] for row in ahead.order for _ in range(ids.shape[1])]
        hidden_B_Q_C = self._hidden(ids.reshape(-1), positions, ahead, owners)
        hidden_B_Q_C = hidden_B_Q_C.view(*ids.shape, -1)
        return hidden_B_Q_C[ahead.order.argsort().to(hidden_B_Q_C.device)]

    def _hidden(
        self,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        pack: Attending,
        owners: Sequence[Adapter | None],
    ) -> Any:
        """Last hidden states at the pack's label positions, (L, C)."""
        filled = Filled(pack, len(ids_T), self._filled)
        self.beside.route(owners, len(ids_T) + filled.more)
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
        hidden_N_C = nn.functional.pad(hidden_N_C, (0, 0, 0, self._filled(count) - count))
        logits_N_V: torch.Tensor = self.packed.causal.get_output_embeddings()(hidden_N_C)[:count]
        cap = self.packed.softcap
        return logits_N_V if cap is None else cap * torch.tanh(logits_N_V / cap)


class Plain:
    """One row at a time through the model's own code and cache."""

    rows_at_most = 1
    adapts = False

    def __init__(self, model: Any) -> None:
        self.model, self.caches = model, []  # type: ignore[var-annotated]

    def row_bytes(self, tokens: int) -> int:
        """Not known: there is one row."""
        return 0

    def known(self, ids: Sequence[int], adapter: Adapter | None = None) -> int:
        return 0

    def begin(self, ids: Sequence[int]) -> None:
        assert not ids
        self.caches.clear()

    @property
    def mixes(self) -> bool:
        return False

    def read(
        self,
        rows: Sequence[list[int]],
        adapters: Sequence[Adapter | None] | None = None,
        ahead: Sequence[int] = (),
    ) -> torch.Tensor:
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

    def likeliest(self, logits_N_V: torch.Tensor) -> list[int]:
        return _likeliest(logits_N_V)

    def free(self, row: int) -> None:
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def score(
        self,
        rows: Sequence[list[int]],
        continuations: Sequence[Sequence[list[int]]],
        adapter: Adapter | None = None,
    ) -> list[list[float]]:
        return [[self._scored(row, ids) for ids in many] for row, many in zip(rows, continuations)]

    def _scored(self, row: list[int], continuation: list[int]) -> float:
        ids_1_T = torch.tensor([row + continuation], device=self.model.device)
        logits_T_V = self.model(input_ids=ids_1_T, logits_to_keep=len(continuation) + 1).logits[0]
        log_p = logits_T_V[:-1].log_softmax(-1, dtype=torch.float32)
        targets = torch.tensor(continuation, device=log_p.device)[:, None]
        return float(log_p.gather(1, targets).double().sum())


@contextmanager
def opened(model: Any, *, agreed: Agreed | None = None, what: Hashable = None) -> Iterator[Runner]:
    """The model on its quickest way that gives its own logits.

    `agreed` remembers `what` took the quickest way.
    """
    attention.register()
    packed = PackedModel(model)
    packed.eval()
    beside = Beside()
    native, rows = packed.config._attn_implementation, _probes(packed)
    agreed = agreed or Agreed()
    known = agreed.covers(what)
    wanted = [] if known else [_own_logits(packed, row) for row in rows]
    try:
        packed.causal.set_attn_implementation(attention.NAME)
        ways: list[tuple[bool, Kernels | None]] = [(True, None), (False, None)]
        if packed.kernels:
            ways.insert(0, (True, packed.kernels))
        for quick, packed.kernels in ways:
            way: AbstractContextManager[dict[str, int]] = nullcontext({})
            if quick:
                way = layers.replaced(model, beside, packed.kernels)
            with way as packed.replaced:
                runner = Quick(packed, beside)
                if known or _agrees(runner, rows, wanted):
                    if (quick, packed.kernels) == ways[0]:
                        agreed.add(what)
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


def _likeliest(logits_N_V: torch.Tensor) -> list[int]:
    # Of equals the first, as argmax, which takes four times as long in 16 bits.
    chosen: list[int] = logits_N_V.max(-1).indices.tolist()
    return chosen


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    pairs = zip(some, others)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))


def _parts(lengths: Mapping[int, int]) -> list[list[int]]:
    """Rows, by their lengths, cut into parts of at most READ_TOKENS tokens, or of one row."""
    parts: list[list[int]] = []
    tokens = 0
    for row, length in lengths.items():
        if not parts or tokens + length > READ_TOKENS:
            parts.append([])
            tokens = 0
        parts[-1].append(row)
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
