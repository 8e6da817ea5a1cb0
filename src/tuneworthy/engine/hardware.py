"""What this machine computes fastest, found by a short probe instead of a table of processors."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TypeVar

import torch

T = TypeVar("T")
CORES = torch.get_num_threads()
PROGRAMS, DESCRIPTIONS = 256, 128
"""Products of different shapes that oneDNN keeps programs of, and PyTorch descriptions of.

By themselves 1,024, programs of about 0.1 MB and, apart for each kind of product, descriptions of
0.25 MB: answering rows of many lengths takes all of that. A step or pack needs some dozens, over
and over; making one again takes half a millisecond. Both are read once, at the first product.
"""
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PROGRAMS))
os.environ.setdefault("LRU_CACHE_CAPACITY", str(DESCRIPTIONS))


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """Where to compute, in which number format, and why."""

    device: str
    dtype: torch.dtype
    why: str

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def _product_rate(dtype: torch.dtype, seconds: float = 0.1) -> float:
    """GFLOP/s of a product with a small language model's shapes."""
    rows, width, hidden = 256, 576, 1536
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(hidden, width, dtype=dtype)
    torch.nn.functional.linear(left, right)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        torch.nn.functional.linear(left, right)
        count += 1
    return 2 * rows * width * hidden * count / spent / 1e9


@cache
def number_format() -> NumberFormat:
    """The fastest number format that this machine has. Takes about a third of a second once.

    bfloat16 is two to three times faster than float32 on processors with 16-bit dot products and
    several times slower on the others, so it is measured.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported():
            return NumberFormat("cuda", torch.bfloat16, f"{name} computes in bfloat16")
        return NumberFormat("cuda", torch.float32, f"{name} has no bfloat16")
    exact, short = _product_rate(torch.float32), _product_rate(torch.bfloat16)
    why = f"products reach {exact:.0f} GFLOP/s in float32 and {short:.0f} in bfloat16 here"
    # 16 bits cost precision: they must pay for it.
    return NumberFormat("cpu", torch.bfloat16 if short > 1.3 * exact else torch.float32, why)


@cache
def liger() -> bool:
    """Whether Liger's Triton kernels are installed and there is a GPU to run them on."""
    return torch.cuda.is_available() and find_spec("liger_kernel") is not None


def compute_here() -> None:
    """Let this thread compute on all cores; best no other one does so in this process.

    OpenMP has a team of threads for each thread that computes on several cores. With more than one
    team it lets none wait awake: every small operation takes five times as long (docs/log.md).
    """
    torch.set_num_threads(CORES)


def compute_alone() -> None:
    """Let this thread compute on one core, beside another that has them all."""
    torch.set_num_threads(1)
    apart(lambda: None)  # what was set last is what new threads begin with


def apart(work: Callable[[], T]) -> T:
    """Compute something on all cores in a thread that ends, and its team with it."""
    with ThreadPoolExecutor(1, initializer=compute_here) as thread:
        return thread.submit(work).result()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def give_back() -> None:
    """Return memory that is free within this process, where glibc's allocator is in use.

    Programs of products, which stay, come to lie between large blocks, which go: what is left
    between them is too small for the next large block, and the heap grows.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let freed memory stay with this process meanwhile, where glibc's allocator is in use.

    It returns large blocks to the system at once and has them zeroed again page by page: a fifth
    of a training step on a processor (docs/log.md).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, 2**17)
        libc.mallopt(_TRIM_THRESHOLD, 2**17)
        give_back()
