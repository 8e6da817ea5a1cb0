"""A model that learns: batches of rows in, one optimizer step each, exact whatever the packing.

The loss of a step is the mean negative log-likelihood over all label tokens of its batch, however
the batch is cut into packs and shared among processes, so that cutting changes nothing but memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tuneworthy.engine import attention, flex, kernels, layers, packing
from tuneworthy.engine.adapters import parameter_groups
from tuneworthy.engine.loss import completion_loss
from tuneworthy.engine.packed import OwnPlans
from tuneworthy.engine.packing import Pack, TokenRow
from tuneworthy.engine.world import World
from tuneworthy.errors import ModelError
from tuneworthy.types import TrainingSettings

PROBED_LABELS = 64
"""Labels of a row on which a quick way is compared with the model's own."""


@dataclass(frozen=True, slots=True)
class RowLoss:
    """One row under the model: summed negative log-likelihood (nats) of its labels."""

    loss: float
    labels: int
    verbatim: bool
    """Whether greedy decoding would give back the completion word for word."""


class PackedModel(nn.Module):
    """A causal language model that takes packs and gives losses, on label positions only.

    Rows share what they all begin with and attend only to themselves where the architecture is
    one that `layers` or transformers' attention interface can be trusted with (`trust`); all other
    models take one row at a time through their own code.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = self.causal.config.get_text_config()
        self.packs = False
        self.kernels = kernels.for_model(self.config, self.causal.dtype, self.device)
        """Of our own, where this machine has some and they are trusted."""
        self.replaced: dict[str, int] = {}

    @property
    def device(self) -> torch.device:
        return self.causal.get_input_embeddings().weight.device

    @property
    def softcap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)

    def forward(self, pack: Pack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Summed loss; each label's loss and whether it is the likeliest token, shape (L,)."""
        hidden_L_C = self.hidden(pack)
        return completion_loss(
            self.causal.get_output_embeddings(),
            hidden_L_C,
            pack.targets_L.to(self.device),
            self.softcap,
            self.kernels,
        )

    def _plans(self, pack: Pack) -> attention.Attending:
        if self.device.type == "cuda":
            return flex.FlexPlans(pack, self.device)
        if self.kernels:
            return OwnPlans(pack, self.config, self.kernels)
        return attention.Plans(pack, self.config, self.device)

    def hidden(self, pack: Pack) -> torch.Tensor:
        """Last hidden states at the positions that predict labels, shape (L, C)."""
        plans = self._plans(pack) if self.packs else None
        hidden_1_T_C = self.causal.get_decoder()(
            input_ids=pack.ids_T[None].to(self.device),
            position_ids=pack.positions_T[None].to(self.device),
            use_cache=False,
            **({"pack": plans} if plans else {}),
        ).last_hidden_state
        if plans and plans.labels_only:
            return hidden_1_T_C[0]
        positions_L = pack.label_positions_L.to(self.device)
        return hidden_1_T_C[0].index_select(0, positions_L)

    def label_logits(self, pack: Pack) -> torch.Tensor:
        """(L, V) in float32, for comparisons: training never makes them whole."""
        logits_L_V = self.causal.get_output_embeddings()(self.hidden(pack)).float()
        cap = self.softcap
        return cap * torch.tanh(logits_L_V / cap) if cap else logits_L_V


class Agreed:
    """What gave a model's own logits on the quickest way: the same is not compared twice."""

    def __init__(self) -> None:
        self._tokens: dict[Hashable, int] = {}

    def covers(self, what: Hashable, tokens: int = 0) -> bool:
        """Whether it was compared before, on a row of at least so many tokens."""
        return tokens <= self._tokens.get(what, -1)

    def add(self, what: Hashable, tokens: int = 0) -> None:
        self._tokens[what] = max(tokens, self._tokens.get(what, 0))


@contextmanager
def trusted(
    model: Any,
    rows: Sequence[TokenRow],
    *,
    copies: bool = True,
    agreed: Agreed | None = None,
    what: Hashable = None,
) -> Iterator[PackedModel]:
    """The model with its quickest way that gives the logits of its own forward on `rows`.

    Tried in turn: packs with `layers`, packs with the attention interface alone, one row at a
    time. `copies`: whether memory has room for weights in another order. `agreed` remembers `what`
    took the quickest way. Raises ModelError if not even the last way agrees: the architecture does
    something to its logits that training does not know.
    """
    attention.register()
    packed = PackedModel(model)
    packed.eval()
    if packed.kernels and not copies:
        packed.kernels = packed.kernels.without_copies()
    ordered = sorted(rows, key=lambda row: len(row.ids))
    agreed, longest = agreed or Agreed(), len(ordered[-1].ids)
    known = agreed.covers(what, longest)
    # Two short rows and the longest: a window, say, tells in long rows only.
    rows = [_probe(row) for row in (*ordered[:2], *ordered[2:][-1:])]
    own = [] if known else [_own_logits(packed, row) for row in rows]
    native = packed.config._attn_implementation
    with ExitStack() as stack:
        ways: list[tuple[bool, kernels.Kernels | None]] = [(True, None), (False, None)]
        if packed.kernels:
            ways.insert(0, (True, packed.kernels))
        for quick, packed.kernels in ways:
            packed.causal.set_attn_implementation(attention.NAME)
            packed.packs, packed.replaced = True, {}
            attempt = stack.enter_context(ExitStack())
            if quick:
                packed.replaced = attempt.enter_context(
                    layers.replaced(model, kernels=packed.kernels)
                )
            if known or _agrees(packed, rows, own):
                if (quick, packed.kernels) == ways[0]:
                    agreed.add(what, longest)
                yield packed
                return
            attempt.close()
        packed.packs = False
        packed.causal.set_attn_implementation(native)
        if not _agrees(packed, rows[:1], own[:1]):
            raise ModelError(
                f"training does not know the output head of {type(packed.causal).__name__}",
                hint="use another base model",
            )
        yield packed


def _probe(row: TokenRow) -> TokenRow:
    """The row with its last labels only: whole logits may not fit in memory."""
    return TokenRow(row.ids, max(row.prompt_length, len(row.ids) - PROBED_LABELS))


@torch.no_grad()
def _own_logits(packed: PackedModel, row: TokenRow) -> torch.Tensor:
    ids = torch.tensor([row.ids], device=packed.device)
    logits_T_V = packed.model(input_ids=ids, logits_to_keep=row.labels + 1).logits[0].float()
    return logits_T_V[-row.labels - 1 : -1]


@torch.no_grad()
def _agrees(packed: PackedModel, rows: Sequence[TokenRow], own: Sequence[torch.Tensor]) -> bool:
    exact = next(packed.causal.parameters()).dtype == torch.float32
    tolerance = 1e-3 if exact else 0.05
    try:
        ours = packed.label_logits(packing.pack(rows))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    theirs = torch.cat(list(own))
    if ours.shape != theirs.shape or not torch.isfinite(ours).all():
        return False
    # Sixteen bits round at every layer: compare the difference as a whole, not each logit.
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


class Learner:
    """A packed model with its optimizer.

    In a 16-bit model the trainable parameters, their gradients and moments are kept in float32:
    adapters are float32 themselves, and full fine-tuning keeps masters beside the weights.
    """

    def __init__(
        self,
        packed: PackedModel,
        settings: TrainingSettings,
        world: World,
        pack_tokens: int,
        *,
        sharded: bool = False,
    ) -> None:
        self.packed, self.settings, self.world = packed, settings, world
        self.sharded = sharded
        self.pack_tokens = pack_tokens
        self.names = [n for n, p in packed.model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in packed.model.parameters() if p.requires_grad]
        self.masters = [
            p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters
        ]
        self._rates = []
        groups = []
        of = {id(p): m for p, m in zip(self.parameters, self.masters)}
        for group in parameter_groups(packed.model, settings):
            self._rates.append(group["rate"])
            groups.append({"params": [of[id(p)] for p in group["params"]]})
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.gradient_norm = 0.0

    def adopt(self, weights: Sequence[torch.Tensor]) -> None:
        """Start full fine-tuning from these float32 weights, which the model's were rounded from."""
        for master, weight in zip(self.masters, weights):
            master.copy_(weight)

    def step(self, rows: Sequence[TokenRow], rate: float) -> tuple[float, int]:
        """One optimizer step at a learning rate; mean loss per label token, tokens computed."""
        if not self.packed.training:  # it goes through thousands of modules
            self.packed.train()
        labels = sum(row.labels for row in rows)
        total, computed = 0.0, 0
        for pack, weight in self._packs(rows):
            loss, _, _ = self.packed(pack)
            (loss * (weight / labels)).backward()
            total += loss.item() * (weight > 0)
            computed += pack.tokens
            self._collect()
        if not self.sharded:
            self._add_up()
        total = self.world.total(total)[0]
        norm: Any = nn.utils.clip_grad_norm_(self.masters, self.settings.max_gradient_norm)
        self.gradient_norm = float(norm.full_tensor() if self.sharded else norm)
        for group, factor in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._publish()
        return total / labels, computed

    def _add_up(self) -> None:
        """Sum the gradients of all processes; parameters that no row touched have zeros."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        self.world.sum([m.grad for m in self.masters if m.grad is not None])

    def _collect(self) -> None:
        """Move 16-bit gradients into the masters, so that packs add up in float32."""
        for parameter, master in zip(self.parameters, self.masters):
            if parameter is master or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def _publish(self) -> None:
        for parameter, master in zip(self.parameters, self.masters):
            if parameter is not master:
                parameter.copy_(master)

    def _packs(self, rows: Sequence[TokenRow]) -> list[tuple[Pack, float]]:
        """This process's packs, each with the weight of its loss."""
        tokens = self.pack_tokens if self.packed.packs else 0
        shares = self.world.shares(rows, [len(row.ids) for row in rows])
        if not self.sharded:
            return [(pack, 1.0) for pack in make_packs(shares[self.world.rank], tokens)]
        # Sharded weights are gathered by all processes together, so all must do as many packs;
        # and sharding averages over the processes where the loss wants a sum.
        packs = [make_packs(share, tokens) for share in shares]
        mine = [(pack, float(self.world.size)) for pack in packs[self.world.rank]]
        idle = max(map(len, packs)) - len(mine)
        return mine + [(packing.pack([min(rows, key=lambda r: len(r.ids))]), 0.0)] * idle

    @torch.no_grad()
    def losses(self, rows: Sequence[TokenRow]) -> list[RowLoss]:
        """Each row's loss, in the order of the rows; every process computes all of them."""
        was_training = self.packed.training
        self.packed.eval()
        found: dict[int, RowLoss] = {}
        order = {id(row): i for i, row in enumerate(rows)}
        for pack in make_packs(list(rows), self.pack_tokens if self.packed.packs else 0):
            _, losses_L, right_L = self.packed(pack)
            for row, losses, right in zip(
                pack.order, losses_L.split(pack.label_counts), right_L.split(pack.label_counts)
            ):
                found[order[id(row)]] = RowLoss(
                    float(losses.double().sum()), row.labels, bool(right.all())
                )
        self.packed.train(was_training)
        return [found[i] for i in range(len(rows))]

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, by name; whole, even where it is sharded."""
        tensors = {"random": torch.get_rng_state()}
        for name, master in zip(self.names, self.masters):
            tensors[f"parameter.{name}"] = _whole(master.detach())
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"optimizer.{key}.{name}"] = _whole(value)
        return tensors

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The model's whole state by name if it is sharded, else None: it is in the model."""
        if not self.sharded:
            return None
        state = self.packed.model.state_dict(keep_vars=True)
        # Tied weights stay one tensor, so that they are written once.
        whole = {id(value): _whole(value.detach()) for value in state.values()}
        return {name: whole[id(value)] for name, value in state.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up a state that `state` gave. Raises KeyError if it is not one of this model."""
        torch.set_rng_state(tensors["random"])
        for name, master in zip(self.names, self.masters):
            master.copy_(_like(tensors[f"parameter.{name}"], master))
            moments = {
                key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[master] = {
                key: value.to(master.device) if key == "step" else _like(value, master)
                for key, value in moments.items()
            }
        self._publish()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor where and as the other one lies."""
    whole = whole.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(whole, other.device_mesh, other.placements)
    return whole


def mean(losses: Sequence[RowLoss]) -> float:
    """Mean negative log-likelihood (nats) per label token."""
    return sum(row.loss for row in losses) / max(1, sum(row.labels for row in losses))


def make_packs(rows: Sequence[TokenRow], pack_tokens: int) -> list[Pack]:
    """Rows in packs of like lengths and about equal size, none beyond `pack_tokens` if it can be.

    Not counted is what all rows begin with: each further pack would compute it once more.
    `pack_tokens` 0 makes packs of one row each.
    """
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: len(row.ids))
    if not pack_tokens:
        return [packing.pack([row]) for row in ordered]
    prefix = packing.shared_prefix(ordered)
    own = [len(row.ids) - prefix for row in ordered]
    size = sum(own) / -(-sum(own) // pack_tokens)
    packs: list[Pack] = []
    taken, tokens = [ordered[0]], own[0]
    for row, length in zip(ordered[1:], own[1:]):
        if tokens + length > pack_tokens or tokens + length / 2 > size:
            packs.append(packing.pack(taken))
            taken, tokens = [], 0
        taken.append(row)
        tokens += length
    return [*packs, packing.pack(taken)]
