"""Base models: the only room that knows torch. The functions here are its doors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tuneworthy.errors import ModelError
from tuneworthy.types import Embedder, Engine

if TYPE_CHECKING:
    from tuneworthy.engine.world import World

__all__ = ["join", "launched", "open_embedder", "open_engine"]


def open_engine(base: str, project_folder: Path, say: Callable[[str], None]) -> Engine:
    """A base model, loaded and ready to answer; see the contract, section 2, for its names.

    Raises ModelError, PickleRefused, FetchError or EndpointError before anything is measured.
    """
    if base == "fake":
        from tuneworthy.engine.fake import FakeEngine

        return FakeEngine()
    if base.startswith("openai:"):
        from tuneworthy.engine.endpoint import EndpointEngine

        match = re.fullmatch(r"openai:([^@\s]+)@(https?://\S+)", base)
        if not match:
            raise ModelError(
                f"'{base}' is not openai:model@url",
                where="base",
                hint="base: openai:my-model@http://127.0.0.1:8000/v1",
            )
        if "@" in urlsplit(match[2]).netloc:
            # The base's name is written into every run folder and report.
            raise ModelError(
                "the endpoint's address holds a password",
                where="base",
                hint="take it out and export OPENAI_API_KEY=…",
            )
        engine = EndpointEngine(match[1], match[2])
        engine.probe()
        return engine
    from tuneworthy.engine.models import locate

    located = locate(base, project_folder, say)
    from tuneworthy.engine.local import LocalEngine

    return LocalEngine(located)


def open_embedder(base: str, say: Callable[[str], None]) -> Embedder:
    """The sentence embedder that goes with a base: the fake base has a fake one."""
    if base == "fake":
        from tuneworthy.engine.fake import FakeEmbedder

        return FakeEmbedder()
    from tuneworthy.engine.embedding import MiniLMEmbedder

    return MiniLMEmbedder(say)


def launched() -> int:
    """How many processes torchrun or accelerate launch has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> World:
    """The processes that train together; waits for all of them the first time."""
    from tuneworthy.engine import world

    return world.join()
