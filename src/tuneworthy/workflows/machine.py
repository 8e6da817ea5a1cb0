"""`doctor`: what this machine can do."""

from __future__ import annotations

import shutil
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from tuneworthy import store
from tuneworthy.workflows.session import machine

EXTRAS = {"examples": "hassil"}


def examine() -> dict[str, Any]:
    """Processor, memory, number format, versions and free disk; measured, in half a minute at most."""
    from tuneworthy.engine.hardware import number_format
    from tuneworthy.engine.kernels import state

    chosen = number_format()
    cache = store.cache_folder()
    parent = next(p for p in (cache, *cache.parents) if p.exists())
    return {
        "tuneworthy": metadata.version("tuneworthy"),
        **machine(),
        "device": chosen.device,
        "number_format": f"{chosen.name}: {chosen.why}",
        "kernels": state(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "cache": str(cache),
        "disk_free_gb": round(shutil.disk_usage(parent).free / 1e9, 1),
        **{
            f"extra_{name}": "installed"
            if find_spec(module)
            else f"missing: pip install 'tuneworthy[{name}]'"
            for name, module in EXTRAS.items()
        },
    }
