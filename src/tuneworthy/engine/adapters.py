"""What is trained: the methods by name, their weights on disk, and the base they belong to."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuneworthy import store
from tuneworthy.errors import ModelError
from tuneworthy.types import TrainingSettings

LABEL = "tuneworthy.json"
"""Beside the weights: which base they belong to."""
LORA_PLUS_RATIO = 16.0
"""B learns so many times faster than A (Hayou et al. 2024, "LoRA+", section 5)."""
ALL_LINEAR = "all-linear"


def _lora(settings: TrainingSettings, **changes: Any) -> Any:
    import peft

    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL_LINEAR,
        **changes,
    )


def _other(kind: str, **names: str) -> Callable[[TrainingSettings], Any]:
    """One of PEFT's other adapters; `names` says what it calls rank, alpha and dropout."""

    def make(settings: TrainingSettings) -> Any:
        import peft

        values = {name: getattr(settings, ours) for ours, name in names.items()}
        return getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=ALL_LINEAR, **values)

    return make


METHODS: dict[str, Callable[[TrainingSettings], Any]] = {
    "lora": _lora,
    "lora+": _lora,
    "qlora": _lora,
    "rslora": lambda s: _lora(s, use_rslora=True),
    "dora": lambda s: _lora(s, use_dora=True),
    "pissa": lambda s: _lora(s, init_lora_weights="pissa_niter_4"),
    "olora": lambda s: _lora(s, init_lora_weights="olora"),
    "loha": _other("LoHaConfig", rank="r", alpha="alpha", dropout="module_dropout"),
    "lokr": _other("LoKrConfig", rank="r", alpha="alpha", dropout="module_dropout"),
    "vera": _other("VeraConfig", rank="r", dropout="vera_dropout"),
    "oft": _other("OFTConfig", dropout="module_dropout"),
}
"""Every method beside `full`, with the PEFT configuration that it is."""
MOVES_THE_BASE = ("pissa", "olora")
"""Methods that start from the base's own directions and take them out of the base."""


def prepare(model: Any, settings: TrainingSettings) -> Any:
    """The model with its trainable parameters chosen: an adapter on all linear layers, or all.

    Seeds the adapter's first values. Raises ModelError if the method needs what is not here.
    """
    if settings.method == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model
    import peft

    torch.manual_seed(settings.seed)
    try:
        with quiet_peft():
            # Adapters stay in float32 over a 16-bit base: PEFT's autocast_adapter_dtype does it.
            adapted = peft.get_peft_model(model, METHODS[settings.method](settings))
    except ValueError as error:
        raise ModelError(
            f"{settings.method} does not fit this model: {str(error).splitlines()[0][:160]}",
            where="lora.method",
            hint="method: lora fits every model with linear layers",
        ) from error
    for parameter in adapted.parameters():
        # VeRA's shared projections are frozen buffers; what is trained is float32.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.method in MOVES_THE_BASE:
        adapted.tuneworthy_first = {
            name: value.clone() for name, value in peft.get_peft_model_state_dict(adapted).items()
        }
    return adapted


def parameter_groups(model: Any, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Trainable parameters for an optimizer; LoRA+ gives B a rate of its own."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if settings.method != "lora+":
        return [{"params": [p for _, p in named], "rate": 1.0}]
    up = [p for name, p in named if "lora_B" in name]
    down = [p for name, p in named if "lora_B" not in name]
    return [{"params": down, "rate": 1.0}, {"params": up, "rate": LORA_PLUS_RATIO}]


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for an attribute by its old name, and users are told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter merged into its weights, computed in float32."""
    import peft

    dtype = model.dtype
    with quiet_peft():
        merged = peft.PeftModel.from_pretrained(model.float(), str(folder)).merge_and_unload()
    for parameter in merged.parameters():  # buffers, such as rotary frequencies, stay as they are
        parameter.data = parameter.data.to(dtype)
    return merged


@contextmanager
def system_errors() -> Iterator[None]:
    """Safetensors has an error of its own for a full disk: make it the system's."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error)) from error


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """`store.replaced` for tensors."""
    with store.replaced(folder) as draft, system_errors():
        yield draft


def save(
    model: Any,
    folder: Path,
    settings: TrainingSettings,
    base_sha256: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Replace the folder's weights in one step: the old ones or the new, never a part.

    `weights` are the model's by name where it does not hold them whole itself.
    """
    with saving(folder) as draft:
        model.save_pretrained(draft, state_dict=weights, safe_serialization=True)
        first = getattr(model, "tuneworthy_first", None)
        if first is not None:
            _as_plain_lora(draft, first)
        label = {"base_sha256": base_sha256, "settings": asdict(settings)}
        store.write_json(draft / LABEL, label)


def _as_plain_lora(folder: Path, first: dict[str, torch.Tensor]) -> None:
    """Rewrite an adapter over a changed base as one of twice the rank over the base itself.

    The change is B·A - B₀·A₀ = [B, -B₀]·[A; A₀] (Meng et al. 2024, "PiSSA", appendix C).
    """
    path = folder / "adapter_model.safetensors"
    weights = {}
    for name, value in load_file(path).items():
        before = first[name].to(value.dtype).cpu()
        if "lora_A" in name:
            weights[name] = torch.cat([value, before], 0).contiguous()
        else:
            weights[name] = torch.cat([value, -before], 1).contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    config["init_lora_weights"] = True
    store.write_json(folder / "adapter_config.json", config)


def check_owner(folder: Path, base_sha256: str) -> None:
    """Raise ModelError unless these weights were trained on this base."""
    owner = store.read_json(folder / LABEL)["base_sha256"]
    if owner != base_sha256:
        raise ModelError(
            f"these weights were trained on another base ({owner[:12]}…, "
            f"this one is {base_sha256[:12]}…)",
            where=str(folder),
            hint="tuneworthy train again on this base",
        )
