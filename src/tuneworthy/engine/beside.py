"""LoRA adapters beside the weights of one base: several at a time, each for its own rows.

What an adapter adds to a linear layer is a thin product, so rows of several adapters, and of none,
go through the base's own products together. Adapters of one pass are one of all their ranks, of
which each row sees its own (after Chen et al. 2023, "Punica", and Sheng et al. 2023, "S-LoRA",
which have kernels for it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file
from torch import nn

from tuneworthy import store

MIXTURES = 4
"""Adapters that ran together are kept joined, so many sets of them."""
FEW_PASSES = 3
"""In which adapters run together before they are laid out for whole layers: that takes as long as it
saves in so many, and who runs together may change at any time."""
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """A (R, I) and s·B (O, R) of each linear layer that it adds to, in the base's number format."""

    rank: int
    parts: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]

    def part(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a layer; zeros for one that it adds nothing to."""
        if module in self.parts:
            return self.parts[module]
        weight: Any = module.weight
        down_R_I = weight.new_zeros(self.rank, weight.shape[1])
        return down_R_I, weight.new_zeros(weight.shape[0], self.rank)


def load(model: Any, folder: Path) -> Adapter | None:
    """A stored adapter for the layers of a base; None if it is more than LoRA of one rank.

    Such adapters are merged into a base of their own instead.
    """
    config = store.read_json(folder / "adapter_config.json")
    more = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out")
    if config["peft_type"] != "LORA" or any(config.get(name) for name in more):
        return None
    rank = int(config["r"])
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    modules = dict(model.named_modules())
    halves: dict[nn.Module, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        found = _NAME.fullmatch(name)
        module = modules.get(found[1]) if found else None
        if found is None or type(module) is not nn.Linear or rank not in value.shape:
            return None
        halves.setdefault(module, {})[found[2]] = value

    def ready(module: nn.Module, value: torch.Tensor) -> torch.Tensor:
        weight: Any = module.weight
        return value.to(weight.device, weight.dtype)

    return Adapter(
        rank,
        {
            module: (ready(module, both["A"]), ready(module, both["B"].float() * scale))
            for module, both in halves.items()
        },
    )


class Beside:
    """Which adapters the tokens of the pass under way go through."""

    def __init__(self) -> None:
        self.roomy = True
        """Whether there is memory for another copy of the weights, in a quicker order."""
        self.kept: dict[tuple[nn.Module, ...], Any] = {}
        """Those copies, by the layers that are one product."""
        self._now: Adapter | None = None
        self._sees_T_R: torch.Tensor | None = None
        """1 where a token's adapter has a rank, 0 where others have; None if there is one."""
        self._joined: dict[tuple[Adapter, ...], Adapter] = {}
        self._passes: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()
        """Of joined adapters."""

    def route(self, owners: Sequence[Adapter | None], tokens: int) -> None:
        """`owners` are those of the first tokens of `tokens`, or one for all of them."""
        found = tuple(sorted({owner for owner in owners if owner}, key=id))
        self._now = self._sees_T_R = None
        if not found:
            return
        self._now = found[0] if len(found) == 1 else self._together(found)
        if len(found) > 1:
            self._passes[self._now] = self._passes.get(self._now, 0) + 1
        if len(set(owners)) > 1:
            ranks = torch.tensor([i for i, owner in enumerate(found) for _ in range(owner.rank)])
            number = {owner: i for i, owner in enumerate(found)} | {None: -1}
            mine = torch.full((tokens,), -1)
            mine[: len(owners)] = torch.tensor([number[owner] for owner in owners])
            down, _ = next(iter(self._now.parts.values()))
            self._sees_T_R = (mine[:, None] == ranks).to(down.device, down.dtype)

    def _together(self, found: tuple[Adapter, ...]) -> Adapter:
        """One adapter of all their ranks."""
        if found not in self._joined:
            parts = {}
            for module in {module: None for adapter in found for module in adapter.parts}:
                each = [adapter.part(module) for adapter in found]
                parts[module] = (
                    torch.cat([down for down, _ in each]),
                    torch.cat([up for _, up in each], 1),
                )
            self._joined[found] = Adapter(sum(adapter.rank for adapter in found), parts)
            while len(self._joined) > MIXTURES:
                del self._joined[next(iter(self._joined))]
        return self._joined[found]

    @property
    def under_way(self) -> tuple[Adapter | None, torch.Tensor | None]:
        """What goes beside the layers in this pass; and, where tokens go through different ranks
        of it, 1 for each that a token goes through, 0 for the others: (T, R).
        """
        return self._now, self._sees_T_R

    @property
    def fleeting(self) -> bool:
        """Whether what goes beside the layers may be gone before laying it out has paid."""
        passes = None if self._now is None else self._passes.get(self._now)
        return passes is not None and passes <= FEW_PASSES

    def touches(self, *modules: nn.Module) -> bool:
        """Whether something goes on beside one of these layers in this pass."""
        return self._now is not None and any(module in self._now.parts for module in modules)

    def added(self, module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """A layer's output (…, O) for x (…, I), with what the adapters add to it, in place."""
        if self._now is None or module not in self._now.parts:
            return output
        down_R_I, up_O_R = self._now.parts[module]
        low_T_R = x.reshape(-1, x.shape[-1]) @ down_R_I.t()
        if self._sees_T_R is not None:
            low_T_R *= self._sees_T_R
        output.view(-1, output.shape[-1]).addmm_(low_T_R, up_O_R.t())
        return output
