"""Base models: the only room that knows torch. The functions here are its doors."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tuneworthy.config import EndpointSettings, EngineName, Prices
from tuneworthy.errors import MissingExtra, ModelError
from tuneworthy.types import Embedder, Engine

if TYPE_CHECKING:
    from tuneworthy.engine.world import World

__all__ = ["join", "launched", "open_embedder", "open_engine"]

FAKES = ("fake", "fake:2")


def open_engine(
    base: str,
    project_folder: Path,
    say: Callable[[str], None],
    engine: EngineName = "auto",
    endpoint: EndpointSettings = EndpointSettings(),  # noqa: B008  (frozen)
    prices: Prices = Prices(),  # noqa: B008
) -> Engine:
    """A base model, loaded and ready to answer; `Project.base` lists the names it may have.

    `engine` says what runs a base with weights, `endpoint` and `prices` how an endpoint is asked.
    Raises ModelError, PickleRefused, FetchError, MissingExtra or EndpointError before anything is
    measured.
    """
    if base in FAKES:
        from tuneworthy.engine.fake import FakeEngine

        return FakeEngine(base)
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
        asked = EndpointEngine(match[1], match[2], endpoint, prices, say)
        asked.probe()
        return asked
    return _open_weights(base, project_folder, say, *_chosen(engine))


def _chosen(engine: EngineName) -> tuple[EngineName, str]:
    """What runs weights on this machine, and why. Raises MissingExtra if it is not installed."""
    installed = find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise MissingExtra(
            "vllm is not installed", where="engine", hint="pip install 'vllm>=0.32,<0.33'"
        )
    if engine != "auto":
        return engine, "the project file says so"
    if not installed:
        return "transformers", "vllm is not installed"
    import torch

    if not torch.cuda.is_available():
        return "transformers", "there is no GPU"
    return "vllm", "it is installed and there is a GPU"


def _open_weights(
    base: str, project_folder: Path, say: Callable[[str], None], engine: EngineName, why: str
) -> Engine:
    from tuneworthy.engine.models import locate

    located = locate(base, project_folder, say)
    opened: Engine
    if engine == "vllm":
        from tuneworthy.engine.vllm import VllmEngine

        opened = VllmEngine(located)
    else:
        from tuneworthy.engine.local import LocalEngine

        _settle()
        opened = LocalEngine(located, say)
    opened.base = replace(opened.base, details={**opened.base.details, "engine_why": why})
    return opened


@cache
def _settle() -> None:
    """Spare the garbage collector what was imported: it stays, and to look through it takes longer
    than to load a small model.
    """
    gc.freeze()


def open_embedder(base: str, say: Callable[[str], None]) -> Embedder:
    """The sentence embedder that goes with a base: the fake base has a fake one."""
    if base in FAKES:
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
