"""Exactness is a matter of float32 and of one thread, whatever this machine would choose."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tuneworthy.engine import hardware

    chosen = hardware.NumberFormat("cpu", torch.float32, "tests compare numbers")
    monkeypatch.setattr(hardware, "number_format", lambda: chosen)
    torch.set_num_threads(1)
