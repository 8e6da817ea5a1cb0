"""The processes that train together: one, or as many as `torchrun` or `accelerate launch` started.

Each process takes its share of every batch; sums over all of them make the numbers those of one
process. With one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from tuneworthy.engine import launched


@dataclass(frozen=True, slots=True)
class World:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up float32 tensors over all processes, in place and in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors])):
            tensor.copy_(part.view_as(tensor))

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes, in double precision."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums)
        return [float(x) for x in sums]

    def agreed(self, value: bool) -> bool:
        """What the main process says: clocks differ, and all must stop at one step."""
        if self.size == 1:
            return value
        told = torch.tensor([float(value)], device=self._device)
        dist.broadcast(told, 0)
        return bool(told.item())

    def told(self, text: str) -> str:
        """The main process's text, in every process."""
        if self.size == 1:
            return text
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        length = torch.tensor([len(data)], device=self._device)
        dist.broadcast(length, 0)
        if not self.main:
            data = torch.empty(int(length), dtype=torch.uint8)
        data = data.to(self._device)
        dist.broadcast(data, 0)
        return bytes(data.cpu().tolist()).decode()

    def handed(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's tensors by name, in every process; the others pass none."""
        if self.size == 1:
            return tensors
        kinds = {n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in tensors.items()}
        found = {}
        for name, (kind, *shape) in json.loads(self.told(json.dumps(kinds))).items():
            dtype = getattr(torch, kind)
            tensor = tensors[name] if self.main else torch.empty(shape, dtype=dtype)
            tensor = tensor.to(self._device)
            dist.broadcast(tensor, 0)
            found[name] = tensor.cpu()
        return found

    def shares(self, items: Sequence[Any], weights: Sequence[int]) -> list[list[Any]]:
        """Every process's items, so that each has about the same sum of weights."""
        if self.size == 1:
            return [list(items)]
        loads: list[int] = [0] * self.size
        shares: list[list[Any]] = [[] for _ in range(self.size)]
        for i in sorted(range(len(items)), key=lambda i: (-weights[i], i)):
            least = loads.index(min(loads))
            loads[least] += weights[i]
            shares[least].append(items[i])
        return shares

    @property
    def _device(self) -> str:
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


def join() -> World:
    """The world that the launcher's environment describes; joins it once."""
    if launched() == 1:
        return World()
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend)
        # A process that ends while the group's threads run is now and then aborted.
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
