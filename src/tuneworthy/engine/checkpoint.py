"""Where a training run stands, on disk: written in one step, checked when read, never pickled.

A checkpoint is `state.safetensors` (trained parameters, optimizer moments, random state) and
`state.json` (step, losses, and the digest of everything that decides how training goes on). The
data order is a function of seed and epoch, so the step says where in it the run stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuneworthy import store
from tuneworthy.engine.adapters import saving
from tuneworthy.errors import StorageError

TENSORS = "state.safetensors"
STATE = "state.json"


def write(
    folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any], digest: str
) -> None:
    """Replace the checkpoint; a full disk leaves the one before and raises StorageError."""
    with saving(folder) as draft:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / TENSORS)
        record = {"digest": digest, "sha256": store.sha256_file(draft / TENSORS), **state}
        store.write_json(draft / STATE, record)


def read(folder: Path, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors and state of this very run; None if there is no checkpoint.

    Raises StorageError, naming the checkpoint, if it is torn or belongs to another run.
    """
    store.settle(folder)
    if not folder.exists():
        return None
    hint = f"remove {folder} to train from the start"
    try:
        state = store.read_json(folder / STATE)
        if state["digest"] != digest:
            raise StorageError(
                "this checkpoint belongs to another run (other rows, settings or base)",
                where=str(folder),
                hint=hint,
            )
        if store.sha256_file(folder / TENSORS) != state["sha256"]:
            raise StorageError("this checkpoint is torn", where=str(folder), hint=hint)
        return load_file(folder / TENSORS), state
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise StorageError(
            f"this checkpoint is torn ({type(error).__name__})", where=str(folder), hint=hint
        ) from error
