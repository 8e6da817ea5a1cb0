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


@pytest.fixture
def kernels_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this machine's kernels may be used, as `parametrize(..., indirect=)` says."""
    from tuneworthy.engine import kernels

    if not request.param:
        monkeypatch.setattr(kernels, "found", lambda: "this test goes without")
    return bool(request.param)
