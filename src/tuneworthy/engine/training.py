"""Fine-tuning, LoRA or all weights: completion-only loss, early stopping that keeps the best.

The loss is the mean negative log-likelihood over all label tokens of a step, however the step is
cut into micro-batches, so that cutting changes nothing but memory.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tuneworthy import store
from tuneworthy.errors import ModelError, TrainingDiverged
from tuneworthy.types import Report, TrainingResult, TrainingSettings

MICRO_BATCH_TOKENS = 2048
"""Tokens, padding included, that go through the model at once."""
LABEL = "tuneworthy.json"
"""Beside the weights: which base they belong to."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as ids; the labels are those from `prompt_length` on."""

    ids: list[int]
    prompt_length: int

    @property
    def labels(self) -> int:
        return len(self.ids) - self.prompt_length


def prepare(model: Any, settings: TrainingSettings) -> Any:
    """The model with its trainable parameters chosen: an adapter on all linear layers, or all."""
    if settings.method == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
    )
    with quiet_peft():
        # Adapters stay in float32 over a 16-bit base: PEFT's autocast_adapter_dtype does it.
        return peft.get_peft_model(model, config)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for an attribute by its old name, and users are told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter merged into its weights."""
    import peft

    with quiet_peft():
        return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def train(
    model: Any,
    rows: Sequence[TokenRow],
    dev: Sequence[TokenRow],
    settings: TrainingSettings,
    folder: Path,
    *,
    base_sha256: str,
    report: Report,
    deadline: float | None,
) -> TrainingResult:
    """Train a prepared model; the weights with the lowest dev loss are left in `folder`.

    Raises TrainingDiverged if the loss is no longer a number, naming the step and what to try.
    """
    usable = [row for row in rows if row.labels > 0]
    if not usable:
        raise ModelError("no row has a token to learn from", hint="tuneworthy check shows why")
    check_head(model, usable[0])
    torch.manual_seed(settings.seed)
    run = _Training(model, usable, dev, settings, folder, base_sha256, report)
    stopped = run.work(deadline)
    return TrainingResult(
        settings=settings,
        steps=run.step,
        planned_steps=run.total,
        best_step=run.best_step,
        dev_loss_before=run.before,
        dev_loss=run.best if run.best_step else run.dev_loss,
        train_loss=next(h["loss"] for h in reversed(run.history) if "loss" in h),
        seconds=run.seconds,
        tokens=run.tokens,
        label_tokens=run.label_tokens,
        trained_parameters=sum(p.numel() for p in run.trained),
        rows=len(usable),
        rows_without_labels=len(rows) - len(usable),
        stopped=stopped,
        history=tuple(run.history),
    )


class _Training:
    """One training run as it goes: steps, evaluations on dev, the best weights so far."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[TokenRow],
        dev: Sequence[TokenRow],
        settings: TrainingSettings,
        folder: Path,
        base_sha256: str,
        report: Report,
    ) -> None:
        self.model, self.rows, self.dev, self.settings = model, rows, dev, settings
        self.folder, self.base_sha256, self.report = folder, base_sha256, report
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.steps_per_epoch = math.ceil(len(rows) / settings.batch_rows)
        self.total = max(1, round(settings.epochs * self.steps_per_epoch))
        self.evaluate_every = max(1, self.steps_per_epoch // settings.evaluations_per_epoch)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, _warmup_then_decay(settings, self.total)
        )
        self.start = time.monotonic()
        self.step = self.best_step = self.tokens = self.label_tokens = self.without_gain = 0
        self.recent: list[float] = []
        self.before = self.best = self.dev_loss = mean_loss(model, dev)
        self.history: list[dict[str, float]] = [{"step": 0, "epoch": 0.0, "dev_loss": self.before}]
        report("training", {"step": 0, "steps": self.total, "dev_loss": self.before, "seconds": 0})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def work(self, deadline: float | None) -> Literal["finished", "early", "deadline"]:
        """Train to the end of the epochs, of the gains on dev, or of the time; why it ended."""
        stopped: Literal["finished", "early", "deadline"] = "finished"
        while self.step < self.total and stopped == "finished":
            epoch = self.step // self.steps_per_epoch
            for batch in _epoch(self.rows, self.settings, epoch):
                late = self._advance(batch, deadline)
                if late:
                    stopped = "deadline"
                elif self.without_gain >= self.settings.patience:
                    stopped = "early"
                if self.step >= self.total or stopped != "finished":
                    break
        if self.best_step == 0:
            # Training never helped: the weights kept are the last ones, and fit.json says so.
            _save(self.model, self.folder, self.settings, self.base_sha256)
        return stopped

    def _advance(self, batch: Sequence[TokenRow], deadline: float | None) -> bool:
        """One step, with an evaluation where one is due; whether the time is up."""
        loss = _step(self.model, batch, self.trained, self.optimizer, self.settings)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss} at step {self.step + 1}: training diverged",
                hint=f"try a learning rate of {self.settings.learning_rate / 4:.1e}",
            )
        self.schedule.step()
        self.step += 1
        self.tokens += sum(len(row.ids) for row in batch)
        self.label_tokens += sum(row.labels for row in batch)
        self.recent.append(loss)
        late = deadline is not None and time.monotonic() > deadline
        fields: dict[str, float] = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss,
            "learning_rate": self.schedule.get_last_lr()[0],
        }
        due = self.step % self.evaluate_every == 0 or self.step == self.total or late
        if due:
            fields |= {"loss": sum(self.recent) / len(self.recent), "dev_loss": self._evaluate()}
            self.recent = []
            self.history.append(fields)
        speed = {"seconds": self.seconds, "tokens_per_second": self.tokens / self.seconds}
        self.report("training" if due else "tick", {**fields, "steps": self.total, **speed})
        return late

    def _evaluate(self) -> float:
        self.dev_loss = mean_loss(self.model, self.dev)
        if self.dev_loss < self.best:  # never true for NaN
            self.best, self.best_step, self.without_gain = self.dev_loss, self.step, 0
            _save(self.model, self.folder, self.settings, self.base_sha256)
        else:
            self.without_gain += 1
        return self.dev_loss


def _warmup_then_decay(settings: TrainingSettings, total: int) -> Callable[[int], float]:
    """Linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(settings.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, total - warm)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def _epoch(
    rows: Sequence[TokenRow], settings: TrainingSettings, epoch: int
) -> list[list[TokenRow]]:
    """The batches of one epoch: shuffled, yet rows of like length together to save padding."""
    random = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=random).tolist()
    size = settings.batch_rows
    batches = []
    for start in range(0, len(order), 8 * size):
        pool = sorted(order[start : start + 8 * size], key=lambda i: len(rows[i].ids))
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    shuffled = torch.randperm(len(batches), generator=random).tolist()
    return [[rows[i] for i in batches[b]] for b in shuffled]


def _micro_batches(rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
    """Rows in groups whose padded size stays within MICRO_BATCH_TOKENS."""
    groups: list[list[TokenRow]] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if groups and len(row.ids) * (len(groups[-1]) + 1) <= MICRO_BATCH_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _step(
    model: Any,
    batch: Sequence[TokenRow],
    trained: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
) -> float:
    """One optimizer step; the mean loss per label token of the batch."""
    model.train()
    labels = sum(row.labels for row in batch)
    total = 0.0
    for group in _micro_batches(batch):
        loss = _loss_sum(model, group) / labels
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, settings.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _loss_sum(model: Any, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Summed negative log-likelihood (nats) of the rows' label tokens.

    Rows are padded on the right: a causal model's real tokens never see what comes after them, so
    no mask is needed. The output head runs on label positions only.
    """
    logits_L_V = _label_logits(model, rows)
    targets_L = torch.tensor([i for row in rows for i in row.ids[row.prompt_length :]])
    return torch.nn.functional.cross_entropy(
        logits_L_V, targets_L.to(logits_L_V.device), reduction="sum"
    )


def _label_logits(model: Any, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Logits of the positions that predict labels, rows one after the other, shape (L, V)."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    longest = max(len(row.ids) for row in rows)
    ids_B_T = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    hidden_B_T_C = causal.get_decoder()(input_ids=ids_B_T.to(causal.device)).last_hidden_state
    hidden_L_C = torch.cat(
        [h[row.prompt_length - 1 : len(row.ids) - 1] for h, row in zip(hidden_B_T_C, rows)]
    )
    logits_L_V = causal.get_output_embeddings()(hidden_L_C).float()
    softcap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return softcap * torch.tanh(logits_L_V / softcap) if softcap else logits_L_V


@torch.no_grad()
def check_head(model: Any, row: TokenRow) -> None:
    """Raise ModelError if running the output head alone gives other logits than the model does.

    Some architectures do more to their logits than soft-capping; to train them on others would
    go unnoticed.
    """
    model.eval()
    ours_L_V = _label_logits(model, [row])
    whole_T_V = model(input_ids=torch.tensor([row.ids], device=model.device)).logits[0].float()
    theirs_L_V = whole_T_V[row.prompt_length - 1 : len(row.ids) - 1]
    if not torch.allclose(ours_L_V, theirs_L_V, rtol=0.05, atol=0.05):
        raise ModelError(
            f"training does not know the output head of {type(model).__name__}",
            hint="use another base model",
        )


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[TokenRow]) -> float:
    """Mean negative log-likelihood (nats) per label token."""
    model.eval()
    total = sum(_loss_sum(model, group).item() for group in _micro_batches(rows))
    return total / sum(row.labels for row in rows)


def _save(model: Any, folder: Path, settings: TrainingSettings, base_sha256: str) -> None:
    """Replace the folder's weights in one step."""
    temporary = folder.with_name(folder.name + ".part")
    old = folder.with_name(folder.name + ".old")
    with store.guarded(folder):
        store.remove(temporary)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary, safe_serialization=True)
        label = {"base_sha256": base_sha256, "settings": asdict(settings)}
        store.write_json(temporary / LABEL, label)
        store.remove(old)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        store.remove(old)
