"""Made-up evidence for tests of the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.decision.records import Background, Decision, Terms
from tuneworthy.decision.rule import decide

TRAINED = ("linear", "lora", "full")
COSTS = {"zero-shot": 0.01, "system-prompt": 0.02, "few-shot": 0.10, "rag": 0.20}


def terms(**changes: Any) -> Terms:
    usual: dict[str, Any] = {
        "task": "home",
        "base_name": "fake",
        "base_sha256": "0" * 64,
        "metric": "accuracy",
        "margin": 0.02,
        "requests_per_month": 100_000,
        "train_rows": 1000,
        "rows_kept": 1500,
    }
    return Terms(**{**usual, **changes})


def arm(name: str, scores: Sequence[float | None], **changes: Any) -> ArmEvidence:
    """An arm; by default its answers score 0 on other rows and every row is its own cluster."""
    n = len(scores)
    trained = name.partition("-copy")[0] in TRAINED
    usual: dict[str, Any] = {
        "name": name,
        "trained": trained,
        "ids": tuple(f"row-{i}" for i in range(n)),
        "scores": tuple(None if s is None else float(s) for s in scores),
        "chance": tuple(None if s is None else 0.0 for s in scores),
        "clusters": tuple(range(n)),
        "failures": sum(s is None for s in scores),
        "parsed": (True,) * n,
        "fit_seconds": 300.0 if trained else 0.0,
        "fit_usd": 0.10 if trained else 0.0,
        "seconds_per_request": 0.05,
        "usd_per_1k_requests": 0.02 if trained else COSTS.get(name, 0.01),
        "latencies": (0.4,) * n,
        "prompt_tokens": (60,) * n,
        "output_tokens": (12,) * n,
        "memory_peak_bytes": None,
        "graded": False,
    }
    return ArmEvidence(**{**usual, **changes})


def right(count: int, n: int = 200, start: int = 0) -> list[float]:
    """`count` right answers of n, from row `start` on."""
    return [float((i - start) % n < count) for i in range(n)]


def graded(mean: float, n: int = 200, noise: float = 0.1, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    values = random.normal(0, noise, n)
    return [float(v) for v in np.clip(mean + values - values.mean(), 0, 1)]


def judged(*arms: ArmEvidence, **changes: Any) -> Decision:
    known = {field.name for field in fields(Background)}
    background = {name: changes.pop(name) for name in list(changes) if name in known}
    usual: dict[str, Any] = {
        "spent": {"seconds": 1.0, "usd": 0.0, "exhaustive_seconds_estimate": None, "by": []},
        "seal": {"sha256": "1" * 64, "openings": 1},
    }
    return decide(arms, terms(**changes), Background(**{**usual, **background}))


def said(decision: Decision) -> str:
    return " ".join([*decision.because, *decision.also, decision.would_change or ""])
