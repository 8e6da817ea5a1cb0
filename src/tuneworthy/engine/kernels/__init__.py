"""Kernels of our own for processors: `kernels.cpp`, compiled once on the machine that it runs on.

A compiler makes of it what this very processor can do. Where there is none, or no OpenMP, everything
goes through PyTorch's operations alone: with the same results, more slowly.
"""

from __future__ import annotations

import platform
import secrets
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tuneworthy import store
from tuneworthy.engine.kernels.calls import Kernels, Rotary, Through, Turning
from tuneworthy.engine.kernels.structures import LANES, NAMES

__all__ = ["Kernels", "Rotary", "Through", "Turning", "Unavailable", "for_model", "found", "state"]

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
COMPILE_SECONDS = 120


class Unavailable(Exception):
    """Why there are no kernels here, in one line."""


@cache
def found() -> Kernels | str:
    """The kernels of this machine; or why there are none."""
    try:
        return Kernels(_library(store.cache_folder() / "kernels"))
    except Unavailable as reason:
        return str(reason)
    except (OSError, AttributeError) as error:
        return f"what was compiled does not load: {error}"


def state() -> str:
    """Whether there are kernels here, in one line for people."""
    kernels = found()
    if isinstance(kernels, Kernels):
        return "compiled for this processor"
    return f"none, so that answering and training take longer: {kernels}"


def for_model(config: Any, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Kernels that fit a model of transformers' configuration, if this machine has them."""
    width = getattr(config, "head_dim", None)
    if width is None and getattr(config, "num_attention_heads", None):
        width = config.hidden_size // config.num_attention_heads
    if device.type != "cpu" or dtype not in NAMES or not width or width % LANES:
        return None
    kernels = found()
    return kernels if isinstance(kernels, Kernels) else None


def _library(folder: Path) -> Path:
    """The compiled source, made now if it is not there. Raises Unavailable, OSError."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unavailable("there is no C++ compiler (on Debian: apt-get install g++)")
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in {".h", ".cpp"})
    texts = [path.read_text("utf-8") for path in sources]
    made_of = [*texts, *FLAGS, str(Path(compiler).resolve()), _processor()]
    target = folder / f"{store.sha256_json(made_of)[:16]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{secrets.token_hex(8)}.draft"
    try:
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(draft)],
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "no reason")
            raise Unavailable(f"{compiler} failed: {said}")
        draft.replace(target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{compiler} did not end within {COMPILE_SECONDS} s") from None
    finally:
        draft.unlink(missing_ok=True)
    return target


def _processor() -> str:
    """What this processor can do, as the compiler sees it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text("utf-8", "replace").splitlines() if listed.exists() else []
    wanted = ("flags", "Features", "model", "cpu family", "vendor_id")
    known = [line for line in lines if line.startswith(wanted)]
    return f"{platform.machine()} {platform.processor()} {sorted(set(known))}"
