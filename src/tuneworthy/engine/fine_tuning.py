"""From a base in a folder to trained weights in another: loads, chooses by detection, trains."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tuneworthy.engine import adapted, adapters, memory
from tuneworthy.engine.hardware import NumberFormat, kept_memory, liger
from tuneworthy.engine.learner import Agreed, Learner, PackedModel, trusted
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.engine.packing import TokenRow, shared_prefix
from tuneworthy.engine.training import TrainingRun, labelled
from tuneworthy.engine.world import World, join
from tuneworthy.errors import MissingExtra, ModelError
from tuneworthy.types import Report, TrainingResult, TrainingSettings


@dataclass(frozen=True, slots=True)
class Ready:
    """A model on its way of learning that has not learned yet, and what it starts from."""

    of: Hashable
    """The settings that it was made by."""
    way: Hashable
    """All that its way through the model depends on."""
    packed: PackedModel
    exact: list[torch.Tensor]
    """See `_load`."""
    first: list[torch.Tensor]
    """Values of its trainable parameters, if it is an adapter."""
    random: torch.Tensor

    @torch.no_grad()
    def start(self) -> None:
        """As it was when it was made."""
        self.packed.eval()
        torch.set_rng_state(self.random)
        for parameter, value in zip(_trainable(self.packed.model), self.first, strict=True):
            parameter.copy_(value)
            parameter.grad = None


class Kept:
    """A base with an adapter, from one training to the next that starts from the same.

    Trials of learning rates and parts of the rows do: it is loaded and laid out once for them.
    """

    def __init__(self) -> None:
        self._ready: Ready | None = None
        self._open = ExitStack()
        # Also at the end of the program, while there still are modules to do it with.
        weakref.finalize(self, self._open.close)

    def forget(self) -> None:
        """Let go of its memory."""
        if self._ready:
            self._ready = None
            self._open.close()
            gc.collect()

    def ready(
        self,
        make: Callable[[], Any],
        settings: TrainingSettings,
        rows: Sequence[TokenRow],
        dev: Sequence[TokenRow],
        agreed: Agreed,
    ) -> tuple[Ready, memory.Fit]:
        """What was kept, if it starts from the same and goes the same way; else made anew.

        `make` gives the model with its trainable parameters, and its float32 weights (`_load`).
        """
        of, longest = _of(settings), max(len(row.ids) for row in rows)
        if self._ready and self._ready.of == of:
            fit, what = _fitted(self._ready.packed.model, settings, rows, dev)
            if self._ready.way == (what, fit.checkpointing) and agreed.covers(what, longest):
                self._ready.start()
                return self._ready, fit
        self.forget()
        model, exact = make()
        random = torch.get_rng_state()
        fit, what = _fitted(model, settings, rows, dev)
        packed = self._open.enter_context(
            trusted(model, rows, copies=fit.copies, agreed=agreed, what=what)
        )
        if fit.checkpointing:
            _compute_twice(model)
        alike = [] if settings.method == "full" else _trainable(model)
        first = [value.detach().clone() for value in alike]
        self._ready = Ready(of, (what, fit.checkpointing), packed, exact, first, random)
        return self._ready, fit


def _of(settings: TrainingSettings) -> Hashable:
    """All that decides what a training starts from."""
    return settings.method, settings.rank, settings.alpha, settings.dropout, settings.seed


def _trainable(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fine_tune(
    located: Located,
    number_format: NumberFormat,
    release: Callable[[], None],
    train: Sequence[TokenRow],
    dev: Sequence[TokenRow],
    settings: TrainingSettings,
    folder: Path,
    *,
    tokenizer: Any,
    report: Report,
    deadline: float | None,
    agreed: Agreed | None = None,
    kept: Kept | None = None,
) -> TrainingResult:
    """Train on rows of ids; the weights with the lowest dev loss are left in `folder`.

    `release` frees the base that answers before another is loaded; `agreed` remembers which methods
    were compared with the model's own forward, `kept` what an adapter starts from. Raises ModelError
    where the method or the memory does not allow it, TrainingDiverged if the loss is no longer a
    number.
    """
    rows, dev = labelled(train), labelled(dev)
    world, kept = join(), kept or Kept()
    release()
    sharded = world.size > 1 and shards(settings)

    def make() -> tuple[Any, list[torch.Tensor]]:
        model, exact = _load(located, number_format, settings, sharded)
        return adapters.prepare(model, settings), exact

    with kept_memory(), ExitStack() as at_end:
        at_end.callback(kept.forget)
        ready, fit = kept.ready(make, settings, rows, dev, agreed or Agreed())
        packed = ready.packed
        if sharded:
            _shard(packed, number_format.dtype)
        learner = Learner(packed, settings, world, fit.pack_tokens, sharded=sharded)
        if ready.exact:
            learner.adopt(ready.exact)
        run = TrainingRun(
            learner,
            rows,
            dev,
            settings,
            folder,
            base_sha256=located.sha256,
            report=report,
            without_labels=len(train) - len(rows),
        )
        how = _how(number_format, fit, packed, world, sharded)
        report("note", {"text": "training: " + "; ".join(how.values())})
        result = replace(run.work(deadline), how=how)
        if settings.method != "full" and world.size == 1:
            at_end.pop_all()  # the next may start from it
    if settings.method == "full" and world.main:
        # A full model is a base of its own: it needs its tokenizer beside it.
        tokenizer.save_pretrained(folder)
    return result


def _fitted(
    model: Any, settings: TrainingSettings, rows: Sequence[TokenRow], dev: Sequence[TokenRow]
) -> tuple[memory.Fit, Hashable]:
    """How training is cut to fit in memory; and all that its way through the model depends on."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    longest, shared = max(len(row.ids) for row in (*rows, *dev)), shared_prefix(rows)
    fit = memory.fit(
        *(_causal(model), trained, longest, memory.available(model.device), settings.method),
        shared=shared,
        copies=adapted.copies(model),
    )
    return fit, ("training", settings.method, trained, fit.copies, shared > 0)


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shards(settings: TrainingSettings) -> bool:
    """Whether several processes share weights (FSDP2), or each has all of them (DDP)."""
    if settings.parallel == "auto":
        return settings.method == "full"
    return settings.parallel == "fsdp"


def _shard(packed: PackedModel, dtype: torch.dtype) -> None:
    """FSDP2: each process keeps a part of every layer and gathers a layer when it is used."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in packed.causal.get_decoder().layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(packed, mp_policy=policy)


def _load(
    located: Located, number_format: NumberFormat, settings: TrainingSettings, sharded: bool
) -> tuple[Any, list[torch.Tensor]]:
    """The base, and for full fine-tuning in 16 bits its float32 weights."""
    device, dtype = number_format.device, number_format.dtype
    if sharded:
        # Kept in float32, used in 16 bits: FSDP2's own mixed precision.
        return load_causal(located.folder, torch.float32).to(device), []
    if settings.method == "qlora":
        return _load_4bit(located, dtype), []
    if settings.method != "full" or dtype == torch.float32:
        return load_causal(located.folder, dtype).to(device), []
    exact = load_causal(located.folder, torch.float32).to(device)
    model = load_causal(located.folder, dtype).to(device)
    return model, [parameter.data for parameter in exact.parameters()]


def _load_4bit(located: Located, dtype: torch.dtype) -> Any:
    """Weights in 4-bit NormalFloat (Dettmers et al. 2023, "QLoRA"), computed in `dtype`."""
    if not torch.cuda.is_available():
        raise ModelError(
            "qlora needs a GPU: 4-bit weights have no kernels on a processor",
            where="lora.method",
            hint="method: lora",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("qlora needs bitsandbytes", hint="pip install 'bitsandbytes>=0.49,<1'")
    import peft
    import transformers

    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    model = load_causal(located.folder, dtype, quantization_config=how, device_map={"": 0})
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _compute_twice(model: Any) -> None:
    """Activation checkpointing (Chen et al. 2016): a layer's insides are computed again."""
    _causal(model).activation_checkpointing_enable({"use_reentrant": False})


def _how(
    number_format: NumberFormat, fit: memory.Fit, packed: PackedModel, world: World, sharded: bool
) -> dict[str, str]:
    """What was chosen and why, one phrase each, for the screen and fit.json."""
    layers = ", ".join(f"{count} {kind}" for kind, count in packed.replaced.items() if count)
    how = {
        "format": f"{number_format.name} ({number_format.why})",
        "packs": f"packs of up to {fit.pack_tokens} tokens"
        if packed.packs
        else "one row at a time (this architecture cannot be packed)",
        "layers": f"own way through {layers}" if layers else "the model's own layers",
        "attention": "flex_attention, compiled (a GPU)"
        if packed.packs and packed.device.type == "cuda"
        else "products on tiles of rows of like length"
        if packed.packs
        else "the model's own attention",
        "kernels": "Liger's for norms and gates"
        if liger()
        else "our own, for products too"
        if packed.kernels and fit.copies
        else "our own, for what is between products"
        if packed.kernels
        else "PyTorch's",
        "memory": f"about {fit.bytes / 2**30:.1f} GB (estimate)",
    }
    if fit.checkpointing:
        how["checkpointing"] = "activations computed twice, to fit in memory"
    if world.size > 1:
        how["processes"] = f"{world.size} processes, " + ("FSDP2" if sharded else "DDP")
    return how
